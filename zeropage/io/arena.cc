#include "zeropage/io/arena.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"

namespace zeropage::io {
namespace {

constexpr std::int64_t kHugePageBytes = 2 << 20;

}  // namespace

Arena::Arena(int count, std::int64_t buffer_bytes) : count_(count), buffer_bytes_(aligned(buffer_bytes)) {
  if (count < 1 || buffer_bytes < 1) {
    throw UsageError(fmt::format("an arena of {} buffers of {} bytes: both must be at least 1", count, buffer_bytes));
  }
  const std::int64_t bytes = checked_mul(count_, buffer_bytes_, "bytes of the store's buffers");
  // The kernel may place a mapping anywhere; huge pages need its start aligned to theirs.
  mapped_bytes_ = checked_add(checked_round_up(bytes, kHugePageBytes, "bytes of the store's buffers"), kHugePageBytes,
                              "bytes of the store's buffers");
  void* mapped = mmap(nullptr, static_cast<std::size_t>(mapped_bytes_), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) {
    throw IoError(fmt::format(
        "cannot map {} bytes for {} buffers of the store: {}. Free memory or raise its limit (ulimit -v, cgroup)",
        bytes, count_, std::strerror(errno)));
  }
  mapped_ = static_cast<std::byte*>(mapped);
  const auto start = reinterpret_cast<std::uintptr_t>(mapped_);
  data_ = mapped_ + (kHugePageBytes - start % kHugePageBytes) % kHugePageBytes;
  madvise(data_, static_cast<std::size_t>(bytes), MADV_HUGEPAGE);
  madvise(data_, static_cast<std::size_t>(bytes), MADV_DONTFORK);  // buffers of transfers must not become copy-on-write
}

Arena::~Arena() { munmap(mapped_, static_cast<std::size_t>(mapped_bytes_)); }

}  // namespace zeropage::io
