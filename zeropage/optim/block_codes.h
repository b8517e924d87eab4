/// \file
/// Values that ranks send in 8 or 4 bits: ZeRO++'s quantized gathers and reductions (Wang et al., 2023).
///
/// A block of values has one scale, an fp32 number: its largest magnitude / 127, or / 7 in 4 bits. A value is the scale
/// times a signed integer, which is the nearest one, ties to even. So the error of a value is at most half a scale, in
/// addition to the rounding of fp32 and of the type of the values.
///
///   zeros                        are decoded as +0
///   infinity, NaN                the whole block is decoded as NaN, so that a check for overflow finds it
///   a scale below 2^-126         the whole block is decoded as zeros: magnitudes below 2e-36 (in 4 bits 9e-38)
///
/// Values have parts of equal length, one for each rank. Every part begins a block, so its bytes do not depend on the
/// others. Its coded form is
///
///   scales   fp32, one for each block
///   codes    of whole blocks; after the part's end they are those of zeros. In 4 bits byte i of a block has the codes
///            of its elements i (low) and i + 64 (high).
///   padding  up to a multiple of 16 bytes
///
/// The bytes are the same on every machine and device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "zeropage/base/dtype.h"

namespace zeropage::optim {

enum class BlockCode : std::uint8_t { kInt8, kInt4 };

/// Elements that share a scale. In 8 bits a scale then costs 1.6% of the codes, in 4 bits 6%.
constexpr std::int64_t block_numel_of(BlockCode code) { return code == BlockCode::kInt8 ? 256 : 128; }
constexpr std::int64_t block_bytes_of(BlockCode code) { return code == BlockCode::kInt8 ? 256 : 64; }

constexpr std::int64_t coded_blocks(BlockCode code, std::int64_t numel) {
  return (numel + block_numel_of(code) - 1) / block_numel_of(code);
}

/// Bytes of the coded form of a part of `numel` elements. Compared with bf16 these are 0.51 of the bytes in 8 bits and
/// 0.27 in 4 bits, if a part has many blocks.
constexpr std::int64_t coded_bytes(BlockCode code, std::int64_t numel) {
  const std::int64_t bytes =
      coded_blocks(code, numel) * (static_cast<std::int64_t>(sizeof(float)) + block_bytes_of(code));
  return (bytes + 15) / 16 * 16;
}

/// Values [count * numel] of one type, part after part, and their code.
struct CodedParts {
  BlockCode code = BlockCode::kInt8;
  DType dtype = DType::kFloat32;  ///< fp32, bf16 or fp16
  std::int64_t numel = 0;         ///< of one part
  std::int64_t count = 1;

  std::int64_t part_bytes() const { return coded_bytes(code, numel); }
  std::int64_t total_bytes() const { return count * part_bytes(); }
};

/// Whether values of the type can be coded.
constexpr bool is_codable(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16;
}

/// coded [parts.total_bytes(), aligned to 4] = values, in memory of the host; no overlap. Cost: one pass. Errors:
/// UsageError for other types.
void encode_blocks(const CodedParts& parts, const void* values, std::byte* coded);

/// The reverse: every value is rounded once, from the fp32 product of scale and integer to its type.
void decode_blocks(const CodedParts& parts, const std::byte* coded, void* values);

/// rounded [numel] = decode_blocks(encode_blocks(values)) of one part, without storing its coded form. Both may be the
/// same memory. Cost: one pass. Errors: UsageError for other types.
void round_to_blocks(BlockCode code, DType dtype, const void* values, void* rounded, std::int64_t numel);

}  // namespace zeropage::optim
