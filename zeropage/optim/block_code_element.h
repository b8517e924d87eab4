/// \file
/// One element in 8 or 4 bits (block_codes.h), and the scale of a block. The host's loops and the CUDA kernels use this
/// source. Internal to this room.
#pragma once

#include <bit>
#include <cstdint>

#include "zeropage/optim/block_codes.h"

namespace zeropage::optim {

/// How a block is coded, given its largest magnitude.
struct BlockScale {
  float scale = 0.0F;
  float inverse = 0.0F;
  std::uint32_t mask = 0;  ///< mask of codes: 0 if the codes must be 0
};

/// `largest`: the bits of the block's largest magnitude (those of infinity and NaN are above all others).
constexpr BlockScale block_scale_of(BlockCode code, std::uint32_t largest) {
  if (largest >= 0x7f800000U) return {std::bit_cast<float>(0x7fc00000U), 0.0F, 0};
  // Three steps below the largest number the product of scale and code is finite, for any rounding of both.
  const float magnitude = std::bit_cast<float>(largest < 0x7f7ffffcU ? largest : 0x7f7ffffcU);
  const float scale = magnitude / (code == BlockCode::kInt8 ? 127.0F : 7.0F);
  if (scale < 0x1p-126F) return {};
  return {scale, 1.0F / scale, code == BlockCode::kInt8 ? 0xffU : 0xfU};
}

/// The nearest integer in the low bits, as a two's complement: a large constant is added, at which fp32 has steps of 1.
constexpr std::uint32_t block_code_of(float value, const BlockScale& scale) {
  return std::bit_cast<std::uint32_t>(value * scale.inverse + 0x1.8p23F) & scale.mask;
}

constexpr float value_of_int8(std::uint8_t code, float scale) {
  return static_cast<float>(static_cast<std::int32_t>(static_cast<std::int8_t>(code))) * scale;
}

/// `code`: 4 bits.
constexpr float value_of_int4(std::uint32_t code, float scale) {
  return static_cast<float>(static_cast<std::int32_t>(code ^ 8U) - 8) * scale;
}

}  // namespace zeropage::optim
