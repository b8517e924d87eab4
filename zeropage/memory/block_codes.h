/// \file
/// Values in 8 or 4 bits (optim/block_codes.h) on any device: by our own kernels if there are some, otherwise by
/// torch's operators, with the same bytes.
#pragma once

#include "zeropage/memory/torch_config.h"

#include "zeropage/optim/block_codes.h"

namespace zeropage::memory {

/// coded [parts.total_bytes(), aligned to 4] = values, both on `device`; in the order of its current stream. Cost: one
/// pass; with operators about ten, and temporary memory of twice the values in fp32. Errors: UsageError for other types
/// than fp32, bf16 and fp16.
void encode_blocks(const optim::CodedParts& parts, const void* values, std::byte* coded, c10::Device device);

/// The reverse.
void decode_blocks(const optim::CodedParts& parts, const std::byte* coded, void* values, c10::Device device);

/// The same by torch's operators, for devices without kernels.
void encode_blocks_by_operators(const optim::CodedParts& parts, const void* values, std::byte* coded,
                                c10::Device device);
void decode_blocks_by_operators(const optim::CodedParts& parts, const std::byte* coded, void* values,
                                c10::Device device);

}  // namespace zeropage::memory
