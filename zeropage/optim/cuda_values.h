/// \file
/// The types of elements that kernels read and write, and how a kernel is chosen by them. For the .cu files alone.
#pragma once

#include <cstdint>

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

/// Elements that one thread reads or writes at once, in accesses of up to 16 bytes.
template <typename Element, int kNumel>
struct alignas(sizeof(Element) * kNumel < 16 ? sizeof(Element) * kNumel : 16) Run {
  Element values[kNumel];
};

/// values[0..count) = the elements from `first` on. `whole`: there are kNumel of them, at an address that suits a Run.
template <typename Element, int kNumel>
__device__ void load_run(Element (&values)[kNumel], const void* data, std::int64_t first, int count, bool whole) {
  const Element* const from = static_cast<const Element*>(data) + first;
  if (whole) {
    const Run<Element, kNumel> run = *reinterpret_cast<const Run<Element, kNumel>*>(from);
    for (int k = 0; k < kNumel; ++k) values[k] = run.values[k];
  } else {
    for (int k = 0; k < kNumel; ++k) {
      if (k < count) values[k] = from[k];
    }
  }
}

/// The other way round.
template <typename Element, int kNumel>
__device__ void store_run(const Element (&values)[kNumel], void* data, std::int64_t first, int count, bool whole) {
  Element* const to = static_cast<Element*>(data) + first;
  if (whole) {
    Run<Element, kNumel> run;
    for (int k = 0; k < kNumel; ++k) run.values[k] = values[k];
    *reinterpret_cast<Run<Element, kNumel>*>(to) = run;
  } else {
    for (int k = 0; k < kNumel; ++k) {
      if (k < count) to[k] = values[k];
    }
  }
}

/// The same with elements of a type, as fp32.
template <typename Values, int kNumel>
__device__ void load_wide(float (&wide)[kNumel], const void* data, std::int64_t first, int count, bool whole) {
  typename Values::Element values[kNumel] = {};
  load_run(values, data, first, count, whole);
  for (int k = 0; k < kNumel; ++k) wide[k] = Values::widen(values[k]);
}

template <typename Values, int kNumel>
__device__ void store_narrow(const float (&wide)[kNumel], void* data, std::int64_t first, int count, bool whole) {
  typename Values::Element values[kNumel];
  for (int k = 0; k < kNumel; ++k) values[k] = Values::narrow(wide[k]);
  store_run(values, data, first, count, whole);
}

/// Calls `call` with the type's own struct of those above.
template <typename Call>
void with_type(DType dtype, Call&& call) {
  if (dtype == DType::kBFloat16) return call(BFloat16());
  if (dtype == DType::kFloat16) return call(Float16());
  call(Float32());
}

}  // namespace zeropage::optim
