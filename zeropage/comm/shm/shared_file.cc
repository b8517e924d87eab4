#include "zeropage/comm/shm/shared_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "zeropage/base/error.h"

namespace zeropage::comm {
namespace {

constexpr const char* kFolder = "/dev/shm";

void reserve(int fd, std::int64_t bytes) {
  int error = 0;
  do {
    error = posix_fallocate(fd, 0, std::max<std::int64_t>(bytes, 1));
  } while (error == EINTR);
  if (error == 0) return;
  struct statvfs space {};
  fstatvfs(fd, &space);
  throw IoError(
      fmt::format("cannot reserve {} bytes of shared memory in {}: {}; it has {} bytes free of {}. Enlarge it (docker: "
                  "--shm-size, Kubernetes: an emptyDir with medium Memory at /dev/shm) or remove files from it",
                  bytes, kFolder, std::strerror(error),
                  static_cast<std::int64_t>(space.f_bavail) * static_cast<std::int64_t>(space.f_frsize),
                  static_cast<std::int64_t>(space.f_blocks) * static_cast<std::int64_t>(space.f_frsize)));
}

SharedFile owned(int fd) { return {Descriptor(fd), fmt::format("/proc/{}/fd/{}", getpid(), fd)}; }

}  // namespace

SharedFile create_shared_file(Backing backing, std::int64_t bytes) {
  if (backing == Backing::kAnonymousFile) {
    const int fd = memfd_create("zeropage", MFD_CLOEXEC);
    if (fd < 0) throw IoError(fmt::format("memfd_create failed: {}", std::strerror(errno)));
    SharedFile file = owned(fd);
    if (fchmod(fd, 0600) != 0 || ftruncate(fd, bytes) != 0) {
      throw IoError(fmt::format("cannot size shared memory to {} bytes: {}", bytes, std::strerror(errno)));
    }
    return file;
  }
  const int fd = open(kFolder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd < 0) throw IoError(fmt::format("cannot create a file in {}: {}", kFolder, std::strerror(errno)));
  SharedFile file = owned(fd);
  reserve(fd, bytes);
  return file;
}

SharedFile create_reserved_file(std::int64_t bytes) {
  try {
    SharedFile file = create_shared_file(Backing::kAnonymousFile, bytes);
    reserve(file.fd.get(), bytes);
    return file;
  } catch (const IoError&) {
    return create_shared_file(Backing::kTemporaryFile, bytes);  // its error is more informative
  }
}

SharedFile open_shared_file(const std::string& path, std::int64_t bytes) {
  SharedFile file{Descriptor(open(path.c_str(), O_RDWR | O_CLOEXEC)), path};
  if (!file.fd) throw IoError(fmt::format("cannot open {}: {}", path, std::strerror(errno)));
  struct stat status {};
  if (fstat(file.fd.get(), &status) != 0 || status.st_uid != geteuid() || status.st_size < bytes) {
    throw IoError(fmt::format("{} belongs to user {} and has {} bytes; expected user {} and at least {} bytes", path,
                              status.st_uid, status.st_size, geteuid(), bytes));
  }
  return file;
}

}  // namespace zeropage::comm
