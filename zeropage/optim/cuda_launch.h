/// \file
/// How kernels are started. nvcc runs them on a GPU; other compilers (cuda_emulation.h) on the host, so that tests can compare them with
/// the host's own functions on any machine. Internal to this room.
#pragma once

namespace zeropage::optim {

/// Whether the threads of a block wait for each other (__syncthreads). Only the emulation asks, for which such threads are dear.
enum class Threads { kApart, kMeet };

}  // namespace zeropage::optim

#if !defined(__CUDACC__)
#include "zeropage/optim/cuda_emulation.h"
#else
#include <cuda_runtime.h>

#include <string>
#include <type_traits>

#include "zeropage/base/error.h"

namespace zeropage::optim {

/// Starts `blocks` blocks of `threads` threads, at least one of each. Errors: Error when CUDA refuses the launch.
template <typename Argument>
void start_kernel(void (*kernel)(Argument), unsigned blocks, unsigned threads, Threads,
                  const std::type_identity_t<Argument>& argument, cudaStream_t stream) {
  kernel<<<blocks, threads, 0, stream>>>(argument);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw Error(std::string("optimizer update on a GPU: the launch failed: ") + cudaGetErrorString(status));
  }
}

}  // namespace zeropage::optim
#endif
