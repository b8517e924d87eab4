#include "zeropage/memory/page_lock.h"

#include <ATen/Context.h>
#include <dlfcn.h>

#include <optional>
#include <string>

namespace zeropage::memory {
namespace {

const PageLock* replaced = nullptr;

/// Finds a function of CUDA's runtime library, which torch has loaded.
void* cuda_function(const char* name) {
  if (void* found = dlsym(RTLD_DEFAULT, name)) return found;
  for (const int version : {13, 12}) {
    const std::string library = "libcudart.so." + std::to_string(version);
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_NOLOAD);
    if (handle == nullptr) continue;
    if (void* found = dlsym(handle, name)) return found;
  }
  return nullptr;
}

std::optional<PageLock> lock_of_accelerator() {
  if (at::getAccelerator() != at::kCUDA) return std::nullopt;
  PageLock lock;
  lock.lock = reinterpret_cast<decltype(lock.lock)>(cuda_function("cudaHostRegister"));
  lock.unlock = reinterpret_cast<decltype(lock.unlock)>(cuda_function("cudaHostUnregister"));
  lock.describe = reinterpret_cast<decltype(lock.describe)>(cuda_function("cudaGetErrorString"));
  lock.forget = reinterpret_cast<decltype(lock.forget)>(cuda_function("cudaGetLastError"));
  if (!lock.lock || !lock.unlock || !lock.describe || !lock.forget) return std::nullopt;
  return lock;
}

}  // namespace

const PageLock* page_lock() {
  static const std::optional<PageLock> found = lock_of_accelerator();
  if (replaced != nullptr) return replaced;
  return found ? &*found : nullptr;
}

void set_page_lock(const PageLock* lock) { replaced = lock; }

}  // namespace zeropage::memory
