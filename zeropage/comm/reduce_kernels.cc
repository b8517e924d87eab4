#include "zeropage/comm/reduce_kernels.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "zeropage/base/error.h"

// One source, compiled once per instruction set; the loader chooses. Sanitizers instrument the choosing code, which
// runs before they are ready, so with them only the portable version is built.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define ZEROPAGE_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define ZEROPAGE_CLONES
#endif

namespace zeropage::comm {
namespace {

constexpr std::int64_t kBlockNumel = 2048;  // accumulators: 8 KiB fp32, 16 KiB fp64

// 16-bit conversions are written without branches so that they vectorize.

inline float from_bf16(std::uint16_t value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16); }

inline std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

inline float from_fp16(std::uint16_t value) {
  const std::uint32_t magnitude = value & 0x7fffu;
  const std::uint32_t exponent_shift =
      magnitude >= 0x7c00u ? 224u << 23 : 112u << 23;  // infinity and NaN keep all ones
  const std::uint32_t normal = (magnitude << 13) + exponent_shift;
  // Through an integer, not through fp32 subnormals, which the processor may be set to flush to zero.
  const auto subnormal =
      std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f);
  const std::uint32_t sign = static_cast<std::uint32_t>(value & 0x8000u) << 16;
  return std::bit_cast<float>((magnitude < 0x400u ? subnormal : normal) | sign);
}

inline std::uint16_t to_fp16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 leaves the value, rounded to multiples of 2^-24, in the low bits of the mantissa.
  const std::uint32_t subnormal =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - std::bit_cast<std::uint32_t>(0.5f);
  std::uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return static_cast<std::uint16_t>(result | ((bits >> 16) & 0x8000u));
}

// Inputs and outputs have any alignment, so these are may_alias types of alignment 1.
typedef float AnyFloat __attribute__((aligned(1), may_alias));
typedef double AnyDouble __attribute__((aligned(1), may_alias));
typedef std::uint16_t AnyHalf __attribute__((aligned(1), may_alias));

#define ZEROPAGE_LOAD_AND_ADD(suffix, Accumulator, Element, convert)                                 \
  ZEROPAGE_CLONES void load_##suffix(Accumulator* sum, const std::byte* input, std::int64_t numel) { \
    const auto* from = reinterpret_cast<const Element*>(input);                                      \
    for (std::int64_t i = 0; i < numel; ++i) sum[i] = convert(from[i]);                              \
  }                                                                                                  \
  ZEROPAGE_CLONES void add_##suffix(Accumulator* sum, const std::byte* input, std::int64_t numel) {  \
    const auto* from = reinterpret_cast<const Element*>(input);                                      \
    for (std::int64_t i = 0; i < numel; ++i) sum[i] += convert(from[i]);                             \
  }
ZEROPAGE_LOAD_AND_ADD(fp32, float, AnyFloat, )
ZEROPAGE_LOAD_AND_ADD(bf16, float, AnyHalf, from_bf16)
ZEROPAGE_LOAD_AND_ADD(fp16, float, AnyHalf, from_fp16)
ZEROPAGE_LOAD_AND_ADD(fp64, double, AnyDouble, )
#undef ZEROPAGE_LOAD_AND_ADD

#define ZEROPAGE_STORE(suffix, Accumulator, Element, convert)                                       \
  ZEROPAGE_CLONES void store_##suffix(std::byte* out, const Accumulator* sum, std::int64_t numel) { \
    auto* to = reinterpret_cast<Element*>(out);                                                     \
    for (std::int64_t i = 0; i < numel; ++i) to[i] = convert(sum[i]);                               \
  }
ZEROPAGE_STORE(fp32, float, AnyFloat, )
ZEROPAGE_STORE(bf16, float, AnyHalf, to_bf16)
ZEROPAGE_STORE(fp16, float, AnyHalf, to_fp16)
ZEROPAGE_STORE(fp64, double, AnyDouble, )
ZEROPAGE_STORE(fp64_as_fp32, double, AnyFloat, static_cast<float>)
#undef ZEROPAGE_STORE

ZEROPAGE_CLONES void accumulate_fp32(std::byte* out, const float* sum, std::int64_t numel) {
  auto* to = reinterpret_cast<AnyFloat*>(out);
  for (std::int64_t i = 0; i < numel; ++i) to[i] += sum[i];
}

ZEROPAGE_CLONES void accumulate_fp64_as_fp32(std::byte* out, const double* sum, std::int64_t numel) {
  auto* to = reinterpret_cast<AnyFloat*>(out);
  for (std::int64_t i = 0; i < numel; ++i) to[i] = static_cast<float>(to[i] + sum[i]);
}

template <typename Accumulator>
struct Kernels {
  void (*load)(Accumulator*, const std::byte*, std::int64_t);
  void (*add)(Accumulator*, const std::byte*, std::int64_t);
  void (*store)(std::byte*, const Accumulator*, std::int64_t);
};

template <typename Accumulator>
void reduce_blocks(const Kernels<Accumulator>& kernels, std::span<const std::byte* const> inputs, std::int64_t in_bytes,
                   std::byte* out, std::int64_t out_bytes, std::int64_t numel, const OnReduced& on_reduced,
                   const std::byte* start) {
  alignas(64) Accumulator sum[kBlockNumel];
  const auto added = start != nullptr ? inputs : inputs.subspan(1);
  for (std::int64_t begin = 0; begin < numel; begin += kBlockNumel) {
    const std::int64_t count = std::min(kBlockNumel, numel - begin);
    if (start != nullptr) {
      std::memcpy(sum, start + begin * static_cast<std::int64_t>(sizeof(Accumulator)), count * sizeof(Accumulator));
    } else {
      kernels.load(sum, inputs[0] + begin * in_bytes, count);
    }
    for (const std::byte* input : added) kernels.add(sum, input + begin * in_bytes, count);
    kernels.store(out + begin * out_bytes, sum, count);
    if (on_reduced) on_reduced(begin, count);
  }
}

Kernels<float> choose_fp32_kernels(DType in_dtype, DType out_dtype, bool accumulate) {
  Kernels<float> kernels{load_fp32, add_fp32, store_fp32};
  if (in_dtype == DType::kBFloat16) kernels = {load_bf16, add_bf16, store_bf16};
  if (in_dtype == DType::kFloat16) kernels = {load_fp16, add_fp16, store_fp16};
  if (out_dtype == DType::kFloat32) kernels.store = accumulate ? accumulate_fp32 : store_fp32;
  return kernels;
}

Kernels<double> choose_fp64_kernels(DType out_dtype, bool accumulate) {
  if (out_dtype == DType::kFloat64) return {load_fp64, add_fp64, store_fp64};
  return {load_fp64, add_fp64, accumulate ? accumulate_fp64_as_fp32 : store_fp64_as_fp32};
}

}  // namespace

void reduce_consecutive(const std::byte* terms, std::int64_t count, std::byte* out, std::int64_t numel, DType in_dtype,
                        DType out_dtype, bool accumulate, const OnReduced& on_reduced, const std::byte* start) {
  std::vector<const std::byte*> inputs;
  for (std::int64_t i = 0; i < count; ++i) inputs.push_back(terms + i * numel * element_bytes(in_dtype));
  reduce_ranks(inputs, out, numel, in_dtype, out_dtype, accumulate, on_reduced, start);
}

void check_reducible(DType in_dtype, DType out_dtype, bool accumulate, const char* what) {
  const bool output_fits = out_dtype == DType::kFloat32 || (out_dtype == in_dtype && !accumulate);
  if (in_dtype != DType::kOther && output_fits) return;
  throw UsageError(
      fmt::format("{}: cannot sum {} into {}{}; sums take fp32, bf16, fp16 or fp64, give the same dtype or fp32, and "
                  "accumulate in fp32",
                  what, dtype_name(in_dtype), dtype_name(out_dtype), accumulate ? " (accumulating)" : ""));
}

void reduce_ranks(std::span<const std::byte* const> inputs, std::byte* out, std::int64_t numel, DType in_dtype,
                  DType out_dtype, bool accumulate, const OnReduced& on_reduced, const std::byte* start) {
  check_reducible(in_dtype, out_dtype, accumulate, "reduce_ranks");
  const std::int64_t in_bytes = element_bytes(in_dtype);
  const std::int64_t out_bytes = element_bytes(out_dtype);
  if (in_dtype == DType::kFloat64) {
    reduce_blocks(choose_fp64_kernels(out_dtype, accumulate), inputs, in_bytes, out, out_bytes, numel, on_reduced,
                  start);
  } else {
    reduce_blocks(choose_fp32_kernels(in_dtype, out_dtype, accumulate), inputs, in_bytes, out, out_bytes, numel,
                  on_reduced, start);
  }
}

}  // namespace zeropage::comm
