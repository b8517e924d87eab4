/// \file
/// Page-locks memory that we have mapped ourselves, so that a device copies from and to it while the host does other
/// work. torch's own allocator of page-locked memory rounds up to powers of two, which for 84 GB of optimizer state is
/// 128 GiB.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <cstddef>

namespace zeropage::memory {

/// The functions of a device's library for this: cudaHostRegister, cudaHostUnregister, cudaGetErrorString and
/// cudaGetLastError of CUDA's.
struct PageLock {
  int (*lock)(void* data, std::size_t bytes, unsigned flags) = nullptr;  ///< 0: done
  int (*unlock)(void* data) = nullptr;
  const char* (*describe)(int status) = nullptr;
  int (*forget)() = nullptr;  ///< call after an error, which later calls of others would otherwise find
};

/// The functions for this process's accelerator. Null if we do not know them; then torch's allocator is used. Cost:
/// nothing after the first call.
const PageLock* page_lock();

/// For tests: replaces the functions; null: those of the accelerator again.
void set_page_lock(const PageLock* lock);

}  // namespace zeropage::memory
