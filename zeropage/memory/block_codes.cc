#include "zeropage/memory/block_codes.h"

#include <ATen/Functions.h>
#include <c10/core/DeviceGuard.h>

#include <limits>

#include "zeropage/memory/device_buffer.h"
#include "zeropage/optim/device_kernels.h"

namespace zeropage::memory {
namespace {

using optim::BlockCode;
using optim::CodedParts;

const optim::DeviceKernels* kernels_of(c10::Device device) {
  const auto* kernels = optim::device_kernels(static_cast<int>(device.type()));
  return kernels != nullptr && kernels->encode != nullptr ? kernels : nullptr;
}

void* stream_of(c10::Device device) { return current_stream(device).native_handle(); }

/// The coded form, as its scales [count, blocks * 4] and its codes [count, blocks * block bytes], both of bytes.
struct CodedViews {
  CodedViews(const CodedParts& parts, const std::byte* coded, c10::Device device) {
    const std::int64_t blocks = optim::coded_blocks(parts.code, parts.numel);
    bytes = flat_view(const_cast<std::byte*>(coded), parts.total_bytes(), at::kByte, device)
                .view({parts.count, parts.part_bytes()});
    scales = bytes.narrow(1, 0, 4 * blocks);
    codes = bytes.narrow(1, 4 * blocks, blocks * optim::block_bytes_of(parts.code));
  }
  at::Tensor bytes, scales, codes;
};

}  // namespace

void encode_blocks(const CodedParts& parts, const void* values, std::byte* coded, c10::Device device) {
  if (device.is_cpu()) return optim::encode_blocks(parts, values, coded);
  const auto* kernels = kernels_of(device);
  if (kernels == nullptr) return encode_blocks_by_operators(parts, values, coded, device);
  const c10::DeviceGuard guard(device);
  kernels->encode(parts, values, coded, stream_of(device));
}

void decode_blocks(const CodedParts& parts, const std::byte* coded, void* values, c10::Device device) {
  if (device.is_cpu()) return optim::decode_blocks(parts, coded, values);
  const auto* kernels = kernels_of(device);
  if (kernels == nullptr) return decode_blocks_by_operators(parts, coded, values, device);
  const c10::DeviceGuard guard(device);
  kernels->decode(parts, coded, values, stream_of(device));
}

void encode_blocks_by_operators(const CodedParts& parts, const void* values, std::byte* coded, c10::Device device) {
  if (parts.numel * parts.count == 0) return;
  const std::int64_t blocks = optim::coded_blocks(parts.code, parts.numel);
  const std::int64_t block_numel = optim::block_numel_of(parts.code);
  const at::Tensor wide =
      flat_view(const_cast<void*>(values), parts.numel * parts.count, scalar_type_of(parts.dtype), device)
          .view({parts.count, parts.numel})
          .to(at::kFloat);
  const at::Tensor x =
      at::constant_pad_nd(wide, {0, blocks * block_numel - parts.numel}).view({parts.count, blocks, block_numel});
  const at::Tensor largest = x.abs().amax(-1, /*keepdim=*/true);
  // The divisor is a tensor: torch may replace a division by a number by a multiplication, which has other bits.
  const at::Tensor levels = at::full_like(largest, parts.code == BlockCode::kInt8 ? 127.0 : 7.0);
  const float most = std::numeric_limits<float>::max() * (1.0F - 0x3p-24F);
  const at::Tensor scale = largest.clamp_max(most).div(levels);
  const at::Tensor coded_at_all = scale.ge(std::numeric_limits<float>::min()).logical_and(largest.isfinite());
  const at::Tensor zero = at::zeros_like(scale);
  const at::Tensor kept = at::where(largest.isfinite(), at::where(coded_at_all, scale, zero),
                                    at::full_like(scale, std::numeric_limits<double>::quiet_NaN()));
  const at::Tensor inverse = at::where(coded_at_all, at::ones_like(scale).div(scale), zero);
  const at::Tensor rounded = at::where(coded_at_all, x.mul(inverse).round(), at::zeros_like(x));
  at::Tensor codes = rounded.to(at::kChar).view(at::kByte);
  if (parts.code == BlockCode::kInt4) {
    const auto halves = codes.chunk(2, -1);
    codes = halves[0].bitwise_and(15).bitwise_or(halves[1].bitwise_left_shift(4));
  }
  CodedViews views(parts, coded, device);
  views.bytes.zero_();
  views.scales.copy_(kept.contiguous().view({parts.count, blocks}).view(at::kByte));
  views.codes.copy_(codes.reshape({parts.count, blocks * optim::block_bytes_of(parts.code)}));
}

void decode_blocks_by_operators(const CodedParts& parts, const std::byte* coded, void* values, c10::Device device) {
  if (parts.numel * parts.count == 0) return;
  const std::int64_t blocks = optim::coded_blocks(parts.code, parts.numel);
  const CodedViews views(parts, coded, device);
  const at::Tensor scales = views.scales.contiguous().view(at::kFloat).view({parts.count, blocks, 1});
  at::Tensor codes = views.codes.contiguous().view({parts.count, blocks, optim::block_bytes_of(parts.code)});
  if (parts.code == BlockCode::kInt8) {
    codes = codes.view(at::kChar);
  } else {
    const auto widen = [](const at::Tensor& half) { return half.bitwise_xor(8).to(at::kChar).sub(8); };
    codes = at::cat({widen(codes.bitwise_and(15)), widen(codes.bitwise_right_shift(4))}, -1);
  }
  const at::Tensor wide = codes.to(at::kFloat).mul(scales).view({parts.count, -1}).narrow(1, 0, parts.numel);
  flat_view(values, parts.numel * parts.count, scalar_type_of(parts.dtype), device)
      .view({parts.count, parts.numel})
      .copy_(wide);
}

}  // namespace zeropage::memory
