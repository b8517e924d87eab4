#include "arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace simulated_device {
namespace {

std::uintptr_t map(int file, std::size_t bytes, int protection) {
  void* mapped = mmap(nullptr, bytes, protection, MAP_SHARED | MAP_NORESERVE, file, 0);
  if (mapped == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "simulated device: mmap");
  return reinterpret_cast<std::uintptr_t>(mapped);
}

}  // namespace

Arena::Arena(const char* name, std::size_t bytes, bool hidden) : bytes_(bytes) {
  file_ = memfd_create(name, MFD_CLOEXEC);
  if (file_ < 0 || ftruncate(file_, static_cast<off_t>(bytes)) != 0) {
    throw std::system_error(errno, std::generic_category(), "simulated device: memfd_create");
  }
  public_ = map(file_, bytes, hidden ? PROT_NONE : PROT_READ | PROT_WRITE);
  private_ = map(file_, bytes, PROT_READ | PROT_WRITE);
}

void* Arena::take(std::size_t bytes) {
  bytes = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  if (bytes > bytes_ - taken_) return nullptr;
  const std::uintptr_t address = public_ + taken_;
  taken_ += bytes;
  return reinterpret_cast<void*>(address);
}

void Arena::discard(Span bytes) {
  const std::uintptr_t first = (bytes.begin + kPageBytes - 1) / kPageBytes * kPageBytes;
  const std::uintptr_t last = bytes.end / kPageBytes * kPageBytes;
  if (first >= last) return;
  fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(first - public_),
            static_cast<off_t>(last - first));
}

}  // namespace simulated_device
