/// \file
/// Which kernels of our own there are for a kind of device. Whoever has some registers them: the CUDA build for GPUs,
/// the tests for their simulated device. Devices without kernels are updated by torch's operators.
#pragma once

#include <cstdint>
#include <vector>

#include "zeropage/optim/block_codes.h"
#include "zeropage/optim/update.h"

namespace zeropage::optim {

/// A range that is updated by one step.
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

/// Starts kernels on `stream`, which is what torch calls a stream's native handle (a cudaStream_t on GPUs).
struct DeviceKernels {
  /// The update of all pieces: update_cuda.h says what it does.
  void (*update)(const std::vector<UpdatePiece>& pieces, void* stream) = nullptr;

  /// The sums of the squares of all pieces: norm_cuda.h says what it does. Null: torch's operators do it.
  void (*square)(const std::vector<SquaredPiece>& pieces, double* lanes, double* blocks, void* stream) = nullptr;

  /// Values in 8 or 4 bits: block_codes_cuda.h says what they do. Both or none; null: torch's operators do it.
  void (*encode)(const CodedParts& parts, const void* values, std::byte* coded, void* stream) = nullptr;
  void (*decode)(const CodedParts& parts, const std::byte* coded, void* values, void* stream) = nullptr;
};

/// Registers them for a device type (torch's number for it). `kernels` live as long as the process.
void set_device_kernels(int device_type, const DeviceKernels* kernels);

/// Null when there are none. Cost: one read.
const DeviceKernels* device_kernels(int device_type);

}  // namespace zeropage::optim
