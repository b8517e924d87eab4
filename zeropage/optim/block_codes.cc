#include "zeropage/optim/block_codes.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "zeropage/base/error.h"
#include "zeropage/optim/block_code_element.h"
#include "zeropage/optim/convert.h"
#include "zeropage/optim/packed_code.h"
#include "zeropage/optim/vector_clones.h"

namespace zeropage::optim {
namespace {

constexpr std::int64_t kInt8Numel = block_numel_of(BlockCode::kInt8);
constexpr std::int64_t kInt4Numel = block_numel_of(BlockCode::kInt4);
constexpr std::int64_t kHalfNumel = kInt4Numel / 2;

ZEROPAGE_VECTOR_CLONES
std::uint32_t largest_of(const float* __restrict block, std::int64_t numel) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < numel; ++i) {
    const std::uint32_t magnitude = magnitude_bits(block[i]);
    largest = largest > magnitude ? largest : magnitude;
  }
  return largest;
}

ZEROPAGE_VECTOR_CLONES
void code_int8(const float* __restrict block, BlockScale scale, std::uint8_t* __restrict codes) {
  for (std::int64_t i = 0; i < kInt8Numel; ++i) codes[i] = static_cast<std::uint8_t>(block_code_of(block[i], scale));
}

ZEROPAGE_VECTOR_CLONES
void code_int4(const float* __restrict block, BlockScale scale, std::uint8_t* __restrict codes) {
  for (std::int64_t i = 0; i < kHalfNumel; ++i) {
    codes[i] =
        static_cast<std::uint8_t>(block_code_of(block[i], scale) | (block_code_of(block[i + kHalfNumel], scale) << 4));
  }
}

ZEROPAGE_VECTOR_CLONES
void widen_int8(const std::uint8_t* __restrict codes, float scale, float* __restrict block) {
  for (std::int64_t i = 0; i < kInt8Numel; ++i) block[i] = value_of_int8(codes[i], scale);
}

ZEROPAGE_VECTOR_CLONES
void widen_int4(const std::uint8_t* __restrict codes, float scale, float* __restrict block) {
  for (std::int64_t i = 0; i < kHalfNumel; ++i) {
    block[i] = value_of_int4(codes[i] & 15U, scale);
    block[i + kHalfNumel] = value_of_int4(static_cast<std::uint32_t>(codes[i]) >> 4, scale);
  }
}

/// Codes `numel` values, at most a block of them; returns the scale.
float code_block(BlockCode code, DType dtype, const void* values, std::int64_t numel, std::uint8_t* codes) {
  float block[kInt8Numel];
  to_float32(values, dtype, block, numel);
  std::fill(block + numel, block + block_numel_of(code), 0.0F);
  const BlockScale scale = block_scale_of(code, largest_of(block, block_numel_of(code)));
  (code == BlockCode::kInt8 ? code_int8 : code_int4)(block, scale, codes);
  return scale.scale;
}

void widen_block(BlockCode code, DType dtype, const std::uint8_t* codes, float scale, void* values,
                 std::int64_t numel) {
  float block[kInt8Numel];
  (code == BlockCode::kInt8 ? widen_int8 : widen_int4)(codes, scale, block);
  from_float32(block, values, dtype, numel);
}

void check_codable(DType dtype) {
  if (is_codable(dtype)) return;
  throw UsageError(fmt::format("values in 8 or 4 bits: expected fp32, bf16 or fp16, got {}", dtype_name(dtype)));
}

/// Calls `call(first element of all values, elements, address of the scale, address of the codes)` for each block.
template <typename Byte, typename Call>
void for_each_block(const CodedParts& parts, Byte* coded, Call&& call) {
  check_codable(parts.dtype);
  const std::int64_t block_numel = block_numel_of(parts.code);
  const std::int64_t blocks = coded_blocks(parts.code, parts.numel);
  for (std::int64_t part = 0; part < parts.count; ++part) {
    auto* scales = coded + part * parts.part_bytes();
    auto* codes = scales + blocks * static_cast<std::int64_t>(sizeof(float));
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t begin = block * block_numel;
      call(part * parts.numel + begin, std::min(block_numel, parts.numel - begin),
           scales + block * static_cast<std::int64_t>(sizeof(float)), codes + block * block_bytes_of(parts.code));
    }
  }
}

}  // namespace

void encode_blocks(const CodedParts& parts, const void* values, std::byte* coded) {
  const auto* from = static_cast<const std::byte*>(values);
  const std::int64_t element = element_bytes(parts.dtype);
  for_each_block(parts, coded, [&](std::int64_t first, std::int64_t numel, std::byte* scale_at, std::byte* codes) {
    const float scale =
        code_block(parts.code, parts.dtype, from + first * element, numel, reinterpret_cast<std::uint8_t*>(codes));
    std::memcpy(scale_at, &scale, sizeof(scale));
  });
}

void decode_blocks(const CodedParts& parts, const std::byte* coded, void* values) {
  auto* to = static_cast<std::byte*>(values);
  const std::int64_t element = element_bytes(parts.dtype);
  for_each_block(parts, coded,
                 [&](std::int64_t first, std::int64_t numel, const std::byte* scale_at, const std::byte* codes) {
                   float scale;
                   std::memcpy(&scale, scale_at, sizeof(scale));
                   widen_block(parts.code, parts.dtype, reinterpret_cast<const std::uint8_t*>(codes), scale,
                               to + first * element, numel);
                 });
}

void round_to_blocks(BlockCode code, DType dtype, const void* values, void* rounded, std::int64_t numel) {
  check_codable(dtype);
  const std::int64_t block_numel = block_numel_of(code);
  const std::int64_t element = element_bytes(dtype);
  for (std::int64_t begin = 0; begin < numel; begin += block_numel) {
    std::uint8_t codes[kInt8Numel];
    const std::int64_t count = std::min(block_numel, numel - begin);
    const float scale = code_block(code, dtype, static_cast<const std::byte*>(values) + begin * element, count, codes);
    widen_block(code, dtype, codes, scale, static_cast<std::byte*>(rounded) + begin * element, count);
  }
}

}  // namespace zeropage::optim
