/// \file
/// One element of an int8 state (packed_state.h), and the exponent of a block. The host's loops and the CUDA kernels
/// use this source. Internal to this room.
#pragma once

#include <bit>
#include <cstdint>

namespace zeropage::optim {

inline constexpr std::uint8_t kInfiniteBlock = 255;  // this exponent: the block unpacks to infinity and NaN
inline constexpr std::uint32_t kMagnitude = 0x7fffffffU;

/// A code of 8 bits with `exponent_bits` of exponent and 3 of mantissa, and a sign if a bit remains for it.
template <int exponent_bits>
struct Code {
  static constexpr bool kSigned = exponent_bits == 4;
  // As an fp32 exponent: the smallest normal numbers of the code, relative to the block's exponent, which is 2^0.
  static constexpr std::uint32_t kFirstExponent = 127 - ((1U << exponent_bits) - 2);
  static constexpr std::uint32_t kLargest = (1U << (exponent_bits + 3)) - 1;
  static constexpr float kUnit = std::bit_cast<float>((kFirstExponent - 3) << 23);  // the distance of subnormals
  static constexpr float kUnitsPerOne = std::bit_cast<float>((254 - (kFirstExponent - 3)) << 23);

  static constexpr float widen(std::uint8_t code) {
    const std::uint32_t field = code & kLargest;
    const float normal = std::bit_cast<float>((field + ((kFirstExponent - 1) << 3)) << 20);
    const float subnormal = static_cast<float>(static_cast<std::int32_t>(field)) * kUnit;
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(field < 8 ? subnormal : normal);
    return std::bit_cast<float>(magnitude | (kSigned ? static_cast<std::uint32_t>(code & 0x80U) << 24 : 0U));
  }

  static constexpr std::uint8_t round(float value, std::uint32_t random) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t magnitude = bits & kMagnitude;
    const std::uint32_t normal = ((magnitude + (random & 0xfffffU)) >> 20) - ((kFirstExponent - 1) << 3);
    const float units = std::bit_cast<float>(magnitude) * kUnitsPerOne + static_cast<float>(random >> 16) * 0x1p-16F;
    const auto subnormal = static_cast<std::uint32_t>(static_cast<std::int32_t>(units < 16.0F ? units : 16.0F));
    std::uint32_t code = magnitude < (kFirstExponent << 23) ? subnormal : normal;
    code = code < kLargest ? code : kLargest;
    if (kSigned) return static_cast<std::uint8_t>(code | ((bits >> 24) & 0x80U));
    return static_cast<std::uint8_t>(code == 0 && magnitude != 0 ? 1U : code);
  }
};

using SignedCode = Code<4>;
using SquaresCode = Code<5>;

/// These bits have the order of the magnitudes; NaN is above infinity.
constexpr std::uint32_t magnitude_bits(float value) { return std::bit_cast<std::uint32_t>(value) & kMagnitude; }

/// The exponent of a block whose largest magnitude has these bits. The largest code is 1.875; larger values need the
/// next exponent.
constexpr std::uint8_t shared_exponent(std::uint32_t largest_magnitude) {
  const std::uint32_t exponent = (largest_magnitude + 0xfffffU) >> 23;
  return exponent < 254 ? static_cast<std::uint8_t>(exponent) : kInfiniteBlock;
}

/// The factor of the widened codes of a block.
constexpr float block_scale(std::uint8_t exponent) { return std::bit_cast<float>(std::uint32_t{exponent} << 23); }

/// The factor of the values of a block before they are rounded to codes.
constexpr float inverse_block_scale(std::uint8_t exponent) {
  return exponent == kInfiniteBlock ? 0.0F : std::bit_cast<float>((254U - exponent) << 23);
}

}  // namespace zeropage::optim
