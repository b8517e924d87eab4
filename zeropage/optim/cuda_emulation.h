/// \file
/// The words of CUDA that our kernels use, for a compiler that knows none of them, and start_kernel as in cuda_launch.h. One
/// block runs after the other. Threads that do not meet do so, too; others are threads of the system, so that a sanitizer sees
/// what a missing __syncthreads does. For tests alone.
#pragma once

#include <algorithm>
#include <array>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

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
inline thread_local std::barrier<>* emulated_barrier = nullptr;

inline void __syncthreads() { emulated_barrier->arrive_and_wait(); }

/// The largest value of the threads of a warp, for all of them; all threads of the block call it together.
inline std::uint32_t largest_in_warp(std::uint32_t value) {
  static std::array<std::uint32_t, 1024> values;  // one block at a time
  values[threadIdx.x] = value;
  __syncthreads();
  const auto first = values.begin() + threadIdx.x / kWarpThreads * kWarpThreads;
  const std::uint32_t largest = *std::max_element(first, first + kWarpThreads);
  __syncthreads();
  return largest;
}

/// Returns when all threads have run. Nothing is ever in the memory of a GPU, and `stream` is not looked at.
template <typename Argument>
void start_kernel(void (*kernel)(Argument), unsigned blocks, unsigned threads, Threads how,
                  const std::type_identity_t<Argument>& argument, cudaStream_t stream) {
  if (how == Threads::kApart) {
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
      for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel(argument);
    }
    return;
  }
  std::barrier<> barrier(static_cast<std::ptrdiff_t>(threads));
  std::vector<std::jthread> running;
  for (unsigned thread = 0; thread < threads; ++thread) {
    running.emplace_back([&, thread] {
      emulated_barrier = &barrier;
      threadIdx.x = thread;
      for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        kernel(argument);
        __syncthreads();
      }
    });
  }
}

}  // namespace zeropage::optim
