/// \file
/// Page-locking of memory that we have mapped ourselves, so that a device copies from and to it while the host does
/// something else. torch's own allocator of page-locked memory rounds up to powers of two, which for 84 GB of optimizer
/// state is 128 GiB.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <cstddef>

namespace zeropage::memory {

/// What a device's library has for that: cudaHostRegister, cudaHostUnregister and cudaGetErrorString of CUDA's.
struct PageLock {
  int (*lock)(void* data, std::size_t bytes, unsigned flags) = nullptr;  ///< 0: done
  int (*unlock)(void* data) = nullptr;
  const char* (*describe)(int status) = nullptr;
};

/// That of this process's accelerator. Null where it has none that we know: then torch's allocator has to do. Cost:
/// nothing after the first call.
const PageLock* page_lock();

/// For tests: another one from now on; null: that of the accelerator again.
void set_page_lock(const PageLock* lock);

}  // namespace zeropage::memory
