/// \file
/// The words of CUDA that our kernels use, for a compiler that knows none of them, and start_kernel as in cuda_launch.h: the threads of all
/// blocks, one after the other. For tests alone.
#pragma once

#include <type_traits>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(threads)

using cudaStream_t = void*;

namespace zeropage::optim {

struct EmulatedIndex {
  unsigned x = 0;
};
inline thread_local EmulatedIndex blockIdx;
inline thread_local EmulatedIndex threadIdx;

/// Returns when all threads have run. Nothing is ever in the memory of a GPU, and `stream` is not looked at.
template <typename Argument>
void start_kernel(void (*kernel)(Argument), unsigned blocks, unsigned threads,
                  const std::type_identity_t<Argument>& argument, cudaStream_t stream) {
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel(argument);
  }
}

}  // namespace zeropage::optim
