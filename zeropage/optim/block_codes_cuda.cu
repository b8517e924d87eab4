// Values in 8 or 4 bits: a warp for each block. Compiled without fused multiply-add.
#include "zeropage/optim/block_codes_cuda.h"

#include <string>

#include "zeropage/base/error.h"
#include "zeropage/optim/block_code_element.h"
#include "zeropage/optim/cuda_launch.h"
#include "zeropage/optim/cuda_values.h"
#include "zeropage/optim/packed_code.h"

namespace zeropage::optim {
namespace {

constexpr int kCodeThreads = 128;
constexpr int kCodeWarps = kCodeThreads / kWarpThreads;
constexpr int kLaneNumel = static_cast<int>(block_numel_of(BlockCode::kInt8)) / kWarpThreads;  // largest number of elements of a lane

struct Coding {
  CodedParts parts;
  std::int64_t blocks = 0;       ///< number of blocks of a part
  const void* values = nullptr;  ///< [parts.count, parts.numel], parts.dtype; of encode_kernel
  void* decoded = nullptr;       ///< the same, of decode_kernel
  std::byte* coded = nullptr;    ///< [parts.count, parts.part_bytes()]: fp32 scales [blocks], then codes
};

/// The place of a warp's block.
struct CodedBlock {
  float* scale = nullptr;         ///< [1]
  std::uint8_t* codes = nullptr;  ///< [numel] in 8 bits, [numel / 2] bytes in 4
  std::int64_t first = 0;  ///< element of all values
  std::int64_t numel = 0;  ///< 0: the warp has none
};

__device__ CodedBlock block_of_warp(const Coding& coding) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kCodeWarps + threadIdx.x / kWarpThreads;
  const std::int64_t part = index / coding.blocks;
  if (part >= coding.parts.count) return {};
  const std::int64_t block = index % coding.blocks;
  const bool int8 = coding.parts.code == BlockCode::kInt8;
  const std::int64_t block_numel = int8 ? block_numel_of(BlockCode::kInt8) : block_numel_of(BlockCode::kInt4);
  const std::int64_t block_bytes = int8 ? block_bytes_of(BlockCode::kInt8) : block_bytes_of(BlockCode::kInt4);
  const std::int64_t left = coding.parts.numel - block * block_numel;
  std::byte* const at = coding.coded + part * coding.parts.part_bytes();
  auto* const scales = reinterpret_cast<float*>(at);
  return {scales + block, reinterpret_cast<std::uint8_t*>(scales + coding.blocks) + block * block_bytes,
          part * coding.parts.numel + block * block_numel, left < block_numel ? left : block_numel};
}

/// A lane has every 32nd element of its block, so that a warp accesses consecutive memory. In 4 bits the elements of
/// the upper half of a block are in the upper halves of the bytes.
template <typename Values>
__global__ void __launch_bounds__(kCodeThreads) encode_kernel(const __grid_constant__ Coding coding) {
  const CodedBlock block = block_of_warp(coding);
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const bool int8 = coding.parts.code == BlockCode::kInt8;
  float values[kLaneNumel];
  std::uint32_t largest = 0;
  for (int k = 0; k < kLaneNumel; ++k) {
    const int i = k * kWarpThreads + lane;
    values[k] = i < block.numel ? Values::load(coding.values, block.first + i) : 0.0F;
    const std::uint32_t magnitude = magnitude_bits(values[k]);
    largest = magnitude > largest ? magnitude : largest;
  }
  largest = largest_in_warp(largest);
  if (block.numel == 0) return;
  const BlockScale scale = block_scale_of(coding.parts.code, largest);
  if (lane == 0) *block.scale = scale.scale;
  if (int8) {
    for (int k = 0; k < kLaneNumel; ++k) {
      block.codes[k * kWarpThreads + lane] = static_cast<std::uint8_t>(block_code_of(values[k], scale));
    }
    return;
  }
  constexpr int kHalf = static_cast<int>(block_bytes_of(BlockCode::kInt4)) / kWarpThreads;
  for (int k = 0; k < kHalf; ++k) {
    const std::uint32_t low = block_code_of(values[k], scale);
    const std::uint32_t high = block_code_of(values[k + kHalf], scale);
    block.codes[k * kWarpThreads + lane] = static_cast<std::uint8_t>(low | (high << 4));
  }
}

/// A lane decodes what it encodes in encode_kernel.
template <typename Values>
__global__ void __launch_bounds__(kCodeThreads) decode_kernel(const __grid_constant__ Coding coding) {
  const CodedBlock block = block_of_warp(coding);
  if (block.numel == 0) return;
  const float scale = *block.scale;
  auto* const decoded = static_cast<typename Values::Element*>(coding.decoded) + block.first;
  constexpr int kHalfNumel = static_cast<int>(block_bytes_of(BlockCode::kInt4));
  const bool int8 = coding.parts.code == BlockCode::kInt8;
  for (int i = static_cast<int>(threadIdx.x) % kWarpThreads; i < block.numel; i += kWarpThreads) {
    const std::uint32_t byte = block.codes[int8 || i < kHalfNumel ? i : i - kHalfNumel];
    const std::uint32_t half = i < kHalfNumel ? byte & 15U : byte >> 4;
    decoded[i] = Values::narrow(int8 ? value_of_int8(static_cast<std::uint8_t>(byte), scale) : value_of_int4(half, scale));
  }
}

/// Calls `call(coding, blocks of threads)`, unless there is nothing to do.
template <typename Call>
void with_coding(const CodedParts& parts, std::byte* coded, Call&& call) {
  if (!is_codable(parts.dtype)) {
    throw UsageError("values in 8 or 4 bits: expected fp32, bf16 or fp16, got " + std::string(dtype_name(parts.dtype)));
  }
  const std::int64_t blocks = coded_blocks(parts.code, parts.numel);
  if (blocks * parts.count == 0) return;
  Coding coding{.parts = parts, .blocks = blocks, .coded = coded};
  call(coding, static_cast<unsigned>((blocks * parts.count + kCodeWarps - 1) / kCodeWarps));
}

}  // namespace

void encode_on_cuda(const CodedParts& parts, const void* values, std::byte* coded, void* stream) {
  with_coding(parts, coded, [&](Coding& coding, unsigned blocks) {
    coding.values = values;
    with_type(parts.dtype, [&]<typename Values>(Values) {
      start_kernel(encode_kernel<Values>, blocks, kCodeThreads, Threads::kMeet, coding, static_cast<cudaStream_t>(stream));
    });
  });
}

void decode_on_cuda(const CodedParts& parts, const std::byte* coded, void* values, void* stream) {
  with_coding(parts, const_cast<std::byte*>(coded), [&](Coding& coding, unsigned blocks) {
    coding.decoded = values;
    with_type(parts.dtype, [&]<typename Values>(Values) {
      start_kernel(decode_kernel<Values>, blocks, kCodeThreads, Threads::kApart, coding, static_cast<cudaStream_t>(stream));
    });
  });
}

}  // namespace zeropage::optim
