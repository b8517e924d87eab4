/// \file
/// Emulates the parts of CUDA that our kernels use, for compilers without CUDA, and start_kernel as in cuda_launch.h.
/// Blocks run one after the other. Threads without __syncthreads also run one after the other; threads with it take
/// turns, each until its next __syncthreads. Under ThreadSanitizer they are threads of the system, so that it finds a
/// missing __syncthreads. Only for tests.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(threads)
#define ZEROPAGE_UNROLL

using cudaStream_t = void*;

namespace zeropage::optim {

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};

/// Accesses to memory that is not used again soon.
template <typename Word>
Word __ldcs(const Word* from) {
  return *from;
}
template <typename Word>
void __stcs(Word* to, Word word) {
  *to = word;
}

struct EmulatedIndex {
  unsigned x = 0;
};
inline thread_local EmulatedIndex blockIdx;
inline thread_local EmulatedIndex threadIdx;
#ifdef __SANITIZE_THREAD__

inline thread_local std::barrier<>* emulated_barrier = nullptr;

inline void __syncthreads() { emulated_barrier->arrive_and_wait(); }

inline void run_meeting(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  std::barrier<> barrier(static_cast<std::ptrdiff_t>(threads));
  std::vector<std::jthread> running;
  for (unsigned thread = 0; thread < threads; ++thread) {
    running.emplace_back([&, thread] {
      emulated_barrier = &barrier;
      threadIdx.x = thread;
      for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        kernel();
        __syncthreads();
      }
    });
  }
}

#else

/// The threads of one block: contexts that take turns on one thread of the system.
struct EmulatedBlock {
  static constexpr std::size_t kStackBytes = 32 << 10;

  explicit EmulatedBlock(unsigned threads) : contexts(threads), done(threads), stacks(threads * kStackBytes) {}

  ucontext_t scheduler = {};
  std::vector<ucontext_t> contexts;
  std::vector<char> done;
  std::vector<std::byte> stacks;
  const std::function<void()>* kernel = nullptr;
};

inline thread_local EmulatedBlock* emulated_block = nullptr;

/// Lets the next thread run. This one continues when all threads have reached a __syncthreads or their end.
inline void __syncthreads() {
  const unsigned thread = threadIdx.x;
  swapcontext(&emulated_block->contexts[thread], &emulated_block->scheduler);
}

inline void run_emulated_thread() {
  (*emulated_block->kernel)();
  emulated_block->done[threadIdx.x] = 1;
}

inline void run_meeting(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  EmulatedBlock block(threads);
  block.kernel = &kernel;
  emulated_block = &block;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (unsigned thread = 0; thread < threads; ++thread) {
      auto& context = block.contexts[thread];
      getcontext(&context);
      context.uc_stack.ss_sp = block.stacks.data() + thread * EmulatedBlock::kStackBytes;
      context.uc_stack.ss_size = EmulatedBlock::kStackBytes;
      context.uc_link = &block.scheduler;
      makecontext(&context, &run_emulated_thread, 0);
      block.done[thread] = 0;
    }
    bool runs = true;
    while (runs) {
      runs = false;
      for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) {
        if (block.done[threadIdx.x]) continue;
        runs = true;
        swapcontext(&block.scheduler, &block.contexts[threadIdx.x]);
      }
    }
  }
  emulated_block = nullptr;
}

#endif

/// Returns the largest value of the threads of a warp to all of them. All threads of the block must call it together.
inline std::uint32_t largest_in_warp(std::uint32_t value) {
  static std::array<std::uint32_t, 1024> values;  // only one block runs at a time
  values[threadIdx.x] = value;
  __syncthreads();
  const auto first = values.begin() + threadIdx.x / kWarpThreads * kWarpThreads;
  const std::uint32_t largest = *std::max_element(first, first + kWarpThreads);
  __syncthreads();
  return largest;
}

/// The number of kernels that this thread has started.
inline thread_local std::int64_t emulated_launches = 0;

/// Returns when all threads have run. All memory is host memory, and `stream` is ignored.
template <typename Argument>
void start_kernel(void (*kernel)(Argument), unsigned blocks, unsigned threads, Threads how,
                  const std::type_identity_t<Argument>& argument, cudaStream_t stream) {
  ++emulated_launches;
  if (how == Threads::kApart) {
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
      for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel(argument);
    }
    return;
  }
  run_meeting(blocks, threads, [&] { kernel(argument); });
}

}  // namespace zeropage::optim
