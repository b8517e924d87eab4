/// \file
/// Values in 8 or 4 bits (block_codes.h) on a GPU, with the host's bytes. Only built with a CUDA compiler and a torch
/// with CUDA (CMakeLists.txt).
#pragma once

#include <cstddef>

#include "zeropage/optim/block_codes.h"

namespace zeropage::optim {

/// Start encode_blocks and decode_blocks on `stream` (a cudaStream_t), in memory of the device. Cost: one launch, one
/// pass. Errors: UsageError for other types than fp32, bf16 and fp16; Error when CUDA refuses a launch.
void encode_on_cuda(const CodedParts& parts, const void* values, std::byte* coded, void* stream);
void decode_on_cuda(const CodedParts& parts, const std::byte* coded, void* values, void* stream);

}  // namespace zeropage::optim
