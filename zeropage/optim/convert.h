/// \file
/// Conversion between fp32 and the 16-bit types, for scalars and arrays. To 16 bits values are rounded to nearest, ties
/// to even; too large values become infinite; NaN stays NaN. To 32 bits the conversion is exact.
#pragma once

#include <bit>
#include <cstdint>

#include "zeropage/base/dtype.h"

namespace zeropage::optim {

/// The upper half of the fp32 bits, rounded.
constexpr std::uint16_t bfloat16_from_float(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  const std::uint32_t quiet_nan = (bits >> 16) | 0x40U;  // rounding could carry a NaN into infinity
  return static_cast<std::uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? quiet_nan : rounded);
}

constexpr float float_from_bfloat16(std::uint16_t value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
}

/// All three ranges are computed and one is selected, so that loops over this have no branch.
constexpr std::uint16_t float16_from_float(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  // From 2^-14: move the exponent (127 - 15 = 112), round off 13 bits; carries into the exponent are right.
  const std::uint32_t normal = (magnitude - (112U << 23) + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
  // Below 2^-14 steps are 2^-24, as they are between 0.5 and 1 in fp32: an addition rounds to them.
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - 0x3f000000U;
  const std::uint32_t special = magnitude > 0x7f800000U ? 0x7e00U : 0x7c00U;
  const std::uint32_t finite = magnitude < 0x38800000U ? subnormal : normal;
  return static_cast<std::uint16_t>(sign | (magnitude >= 0x47800000U ? special : finite));
}

constexpr float float_from_float16(std::uint16_t value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value & 0x8000U) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(value & 0x7fffU) << 13;
  const std::uint32_t normal = magnitude + (112U << 23);
  const std::uint32_t special = magnitude + (224U << 23);
  // Subnormals: put the bits below a leading one, and subtract that one; exact, and no fp32 subnormal is touched.
  const float shifted = std::bit_cast<float>(magnitude + (113U << 23)) - std::bit_cast<float>(113U << 23);
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(shifted);
  const std::uint32_t finite = magnitude < 0x00800000U ? subnormal : normal;
  return std::bit_cast<float>(sign | (magnitude >= 0x0f800000U ? special : finite));
}

/// Stochastic rounding: rounds up with the probability that makes the mean right, for uniform 32 bits `random`. NaN and
/// infinity do not change. Adding 16 random bits below the kept ones carries with this probability.
constexpr std::uint16_t bfloat16_at_random(float value, std::uint32_t random) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t special = (bits >> 16) | ((bits & 0x7fffffffU) > 0x7f800000U ? 0x40U : 0U);
  const std::uint32_t rounded = (bits + (random & 0xffffU)) >> 16;
  return static_cast<std::uint16_t>((bits & 0x7f800000U) == 0x7f800000U ? special : rounded);
}

/// The same with 13 bits; below 2^-14, where steps are 2^-24, by an addition that rounds smaller bits away.
constexpr std::uint16_t float16_at_random(float value, std::uint32_t random) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  const std::uint32_t normal = (magnitude - (112U << 23) + (random & 0x1fffU)) >> 13;
  const float units = std::bit_cast<float>(magnitude) * 0x1p24F + static_cast<float>(random >> 16) * 0x1p-16F;
  // At most 1024 units; larger magnitudes are handled by another branch, and are limited here so that they do not
  // overflow.
  const auto subnormal = static_cast<std::uint32_t>(static_cast<std::int32_t>(units < 2048.0F ? units : 2048.0F));
  const std::uint32_t special = magnitude > 0x7f800000U ? 0x7e00U : 0x7c00U;
  const std::uint32_t finite = magnitude < 0x38800000U ? subnormal : normal < 0x7c00U ? normal : 0x7c00U;
  return static_cast<std::uint16_t>(((bits >> 16) & 0x8000U) | (magnitude >= 0x47800000U ? special : finite));
}

/// destination[0..numel) = source as fp32. `source` holds fp32, bf16 or fp16, aligned to its elements; no overlap.
/// Cost: one pass. Errors: UsageError for other types.
void to_float32(const void* source, DType source_dtype, float* destination, std::int64_t numel);

/// destination[0..numel) = source rounded to fp32 (a copy), bf16 or fp16; no overlap. Cost and errors: as to_float32.
void from_float32(const float* source, void* destination, DType destination_dtype, std::int64_t numel);

/// destination[0..numel) = source rounded stochastically to bf16 or fp16: up with the probability that makes the mean
/// right. The direction depends only on `key` and on the element's index `first` + i. NaN and infinity do not change.
/// Cost: as from_float32.
void round_stochastically(const float* source, void* destination, DType destination_dtype, std::int64_t numel,
                          std::uint64_t key, std::int64_t first);

}  // namespace zeropage::optim
