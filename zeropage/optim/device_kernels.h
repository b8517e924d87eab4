/// \file
/// The registry of our own kernels by type of device. The CUDA build registers kernels for GPUs, and the tests register
/// some for their simulated device. Devices without kernels use torch's operators.
#pragma once

#include <cstdint>
#include <vector>

#include "zeropage/optim/block_codes.h"
#include "zeropage/optim/update.h"

namespace zeropage::optim {

/// A range of elements with the same step.
struct UpdatePiece {
  Arrays arrays;  ///< in the memory of the current device
  std::int64_t numel = 0;
  Step step;
};

/// Elements whose squares are summed.
struct SquaredPiece {
  const void* data = nullptr;  ///< in the memory of the current device
  std::int64_t numel = 0;
  DType dtype = DType::kFloat32;
};

/// Functions that start kernels on `stream`, torch's native handle of a stream (a cudaStream_t on GPUs).
struct DeviceKernels {
  /// The update of all pieces: see update_cuda.h.
  void (*update)(const std::vector<UpdatePiece>& pieces, void* stream) = nullptr;

  /// The sums of the squares of all pieces: see norm_cuda.h. Null: torch's operators are used.
  void (*square)(const std::vector<SquaredPiece>& pieces, double* lanes, double* blocks, void* stream) = nullptr;

  /// Values in 8 or 4 bits: see block_codes_cuda.h. Set both or none; null: torch's operators are used.
  void (*encode)(const CodedParts& parts, const void* values, std::byte* coded, void* stream) = nullptr;
  void (*decode)(const CodedParts& parts, const std::byte* coded, void* values, void* stream) = nullptr;
};

/// Registers them for a device type (torch's number for it). `kernels` must exist until the process ends.
void set_device_kernels(int device_type, const DeviceKernels* kernels);

/// Null when there are none. Cost: one read.
const DeviceKernels* device_kernels(int device_type);

}  // namespace zeropage::optim
