#include "zeropage/comm/shm/mapped_region.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"

namespace zeropage::comm {
namespace {

std::int64_t page_bytes() { return sysconf(_SC_PAGESIZE); }

}  // namespace

MappedRegion::MappedRegion(int fd, std::int64_t bytes, const char* label)
    : bytes_(bytes), mapped_bytes_(round_up(std::max<std::int64_t>(bytes, 1), page_bytes())) {
  const int flags = MAP_SHARED | MAP_NORESERVE | (fd < 0 ? MAP_ANONYMOUS : 0);
  void* data = mmap(nullptr, static_cast<std::size_t>(mapped_bytes_), PROT_READ | PROT_WRITE, flags, fd, 0);
  if (data == MAP_FAILED) {
    throw IoError(
        fmt::format("cannot map {} bytes for {}: {}. Free memory, raise the limit on address space (ulimit -v), or "
                    "shard over more ranks",
                    bytes, label, std::strerror(errno)));
  }
  data_ = static_cast<std::byte*>(data);
}

MappedRegion::~MappedRegion() { munmap(data_, static_cast<std::size_t>(mapped_bytes_)); }

void MappedRegion::discard(std::int64_t offset, std::int64_t length) {
  if (offset < 0 || length < 0 || offset > bytes_ - length) {
    throw UsageError(fmt::format("discard of [{}, {}) outside a memory of {} bytes", offset, offset + length, bytes_));
  }
  const std::int64_t begin = round_up(offset, page_bytes());
  const std::int64_t end = (offset + length) / page_bytes() * page_bytes();
  if (begin >= end) return;
  if (madvise(data_ + begin, static_cast<std::size_t>(end - begin), MADV_REMOVE) != 0) {
    throw IoError(fmt::format("cannot give back {} bytes of shared memory: {}", end - begin, std::strerror(errno)));
  }
}

}  // namespace zeropage::comm
