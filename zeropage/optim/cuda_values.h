/// \file
/// The types of elements that kernels read and write, and the choice of a kernel by them. Only for the .cu files.
#pragma once

#include <cstdint>
#include <cstring>

#include "zeropage/base/dtype.h"
#include "zeropage/optim/convert.h"
#include "zeropage/optim/cuda_launch.h"

namespace zeropage::optim {

struct Float32 {
  using Element = float;
  static __device__ float widen(float element) { return element; }
  static __device__ float narrow(float value) { return value; }
  static __device__ float load(const void* data, std::int64_t i) { return static_cast<const float*>(data)[i]; }
};

struct BFloat16 {
  using Element = std::uint16_t;
  static __device__ float widen(std::uint16_t element) { return float_from_bfloat16(element); }
  static __device__ std::uint16_t narrow(float value) { return bfloat16_from_float(value); }
  static __device__ float load(const void* data, std::int64_t i) {
    return widen(static_cast<const std::uint16_t*>(data)[i]);
  }
};

struct Float16 {
  using Element = std::uint16_t;
  static __device__ float widen(std::uint16_t element) { return float_from_float16(element); }
  static __device__ std::uint16_t narrow(float value) { return float16_from_float(value); }
  static __device__ float load(const void* data, std::int64_t i) {
    return widen(static_cast<const std::uint16_t*>(data)[i]);
  }
};

/// Number of elements of a thread. They are in two groups, so that each access of a warp is to consecutive memory: 16
/// bytes of every thread in fp32.
constexpr int kRunNumel = 8;
constexpr int kGroupNumel = 4;
constexpr int kGroupStride = kWarpThreads * kGroupNumel;
constexpr int kWarpNumel = kWarpThreads * kRunNumel;

/// The distance of a thread's element `k` from its first one.
inline __device__ constexpr int offset_of(int k) { return k / kGroupNumel * kGroupStride + k % kGroupNumel; }

/// The word that a thread reads or writes at once: a group of elements of this size.
template <std::size_t kElementBytes>
struct GroupOf;
template <>
struct GroupOf<4> {
  using Word = uint4;
};
template <>
struct GroupOf<2> {
  using Word = uint2;
};
template <>
struct GroupOf<1> {
  using Word = unsigned;
};

/// values = a thread's elements, beginning with element `first`. Values from index `left` on are not changed.
/// `whole`: there are all of them, and the array begins at a multiple of 16 bytes.
template <typename Element>
__device__ void load_run(Element (&values)[kRunNumel], const void* data, std::int64_t first, int left, bool whole) {
  using Word = typename GroupOf<sizeof(Element)>::Word;
  const Element* const from = static_cast<const Element*>(data) + first;
  if (whole) {
    for (int k = 0; k < kRunNumel; k += kGroupNumel) {
      const Word word = __ldcs(reinterpret_cast<const Word*>(from + offset_of(k)));
      std::memcpy(values + k, &word, sizeof(word));
    }
  } else {
    for (int k = 0; k < kRunNumel; ++k) {
      if (offset_of(k) < left) values[k] = from[offset_of(k)];
    }
  }
}

/// The reverse.
template <typename Element>
__device__ void store_run(const Element (&values)[kRunNumel], void* data, std::int64_t first, int left, bool whole) {
  using Word = typename GroupOf<sizeof(Element)>::Word;
  Element* const to = static_cast<Element*>(data) + first;
  if (whole) {
    for (int k = 0; k < kRunNumel; k += kGroupNumel) {
      Word word;
      std::memcpy(&word, values + k, sizeof(word));
      __stcs(reinterpret_cast<Word*>(to + offset_of(k)),
             word);  // a plain store would be merged with those below, and split
    }
  } else {
    for (int k = 0; k < kRunNumel; ++k) {
      if (offset_of(k) < left) to[offset_of(k)] = values[k];
    }
  }
}

/// The same with elements of a type, as fp32.
template <typename Values>
__device__ void load_wide(float (&wide)[kRunNumel], const void* data, std::int64_t first, int left, bool whole) {
  typename Values::Element values[kRunNumel] = {};
  load_run(values, data, first, left, whole);
  for (int k = 0; k < kRunNumel; ++k) wide[k] = Values::widen(values[k]);
}

template <typename Values>
__device__ void store_narrow(const float (&wide)[kRunNumel], void* data, std::int64_t first, int left, bool whole) {
  typename Values::Element values[kRunNumel];
  for (int k = 0; k < kRunNumel; ++k) values[k] = Values::narrow(wide[k]);
  store_run(values, data, first, left, whole);
}

/// Calls `call` with the type's own struct of those above.
template <typename Call>
void with_type(DType dtype, Call&& call) {
  if (dtype == DType::kBFloat16) return call(BFloat16());
  if (dtype == DType::kFloat16) return call(Float16());
  call(Float32());
}

}  // namespace zeropage::optim
