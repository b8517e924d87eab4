/// \file
/// Starts kernels. With nvcc they run on a GPU; with other compilers (cuda_emulation.h) on the host, so that tests can
/// compare them with the host's own functions on any machine. Internal to this room.
#pragma once

#include <cstdint>

namespace zeropage::optim {

/// Whether the threads of a block wait for each other (__syncthreads). Only the emulation needs this, because such
/// threads are expensive there.
enum class Threads { kApart, kMeet };

constexpr int kWarpThreads = 32;

}  // namespace zeropage::optim

#if !defined(__CUDACC__)
#include "zeropage/optim/cuda_emulation.h"
#else
#include <cuda_runtime.h>

#define ZEROPAGE_UNROLL _Pragma("unroll")

#include <string>
#include <type_traits>

#include "zeropage/base/error.h"

namespace zeropage::optim {

/// Returns the largest value of the threads of a warp to all of them. They must call it together.
inline __device__ std::uint32_t largest_in_warp(std::uint32_t value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffU, value);
#else
  for (int distance = kWarpThreads / 2; distance > 0; distance /= 2) {
    const std::uint32_t other = __shfl_xor_sync(0xffffffffU, value, distance);
    value = other > value ? other : value;
  }
  return value;
#endif
}

/// Starts `blocks` blocks of `threads` threads, at least one of each. Errors: Error when CUDA refuses the launch.
template <typename Argument>
void start_kernel(void (*kernel)(Argument), unsigned blocks, unsigned threads, Threads,
                  const std::type_identity_t<Argument>& argument, cudaStream_t stream) {
  // Not kernel<<<...>>>, whose result is the thread's last error, which may be another call's.
  Argument copy = argument;
  void* arguments[] = {&copy};
  const cudaError_t status = cudaLaunchKernel(kernel, dim3(blocks), dim3(threads), arguments, 0, stream);
  if (status != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // so that no later call finds this error
    throw Error(std::string("a kernel could not be started on the GPU: ") + cudaGetErrorString(status));
  }
}

}  // namespace zeropage::optim
#endif
