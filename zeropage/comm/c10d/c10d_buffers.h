/// \file
/// The buffers of a c10d communicator as tensors: views, local sums, memory.
#pragma once

#include <memory>
#include <string_view>

#include <ATen/core/Tensor.h>

#include "zeropage/base/dtype.h"
#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

/// A tensor [numel, dtype] over memory with another owner; kOther becomes uint8.
at::Tensor wrap(const void* data, std::int64_t numel, DType dtype, c10::Device device);

/// The device of the memory at `pointer`: `device`, or the host.
c10::Device device_of(const void* pointer, c10::Device device);

/// The sum of one rank's contribution `sent` [numel, in_dtype, as bytes] alone, into `out`, which may be the same
/// memory: like sum_received.
void take_own(const at::Tensor& sent, void* out, std::int64_t numel, DType in_dtype, DType out_dtype, bool accumulate,
              const OnReduced& on_reduced);

/// Sums `count` consecutive contributions in `received` [count * numel, in_dtype, as bytes] into `out` [numel,
/// out_dtype], by the rules of reduce_ranks; on a device, in the order of its current stream, and without `on_reduced`.
/// `out` does not overlap `received` or `start`.
void sum_received(const at::Tensor& received, std::int64_t count, void* out, std::int64_t numel, DType in_dtype,
                  DType out_dtype, bool accumulate, const OnReduced& on_reduced, const std::byte* start = nullptr);

/// Call it before a tensor is released that another stream may have made: torch's allocator reuses its memory only
/// after the work that the device's current stream has been given so far. Does nothing on the CPU.
void note_use(const at::Tensor& tensor);

/// Zero-filled memory of this rank only. On the host it needs only address space until touched. Errors: IoError.
std::unique_ptr<Memory> make_private_memory(std::int64_t bytes, c10::Device device, std::string_view label);

}  // namespace zeropage::comm
