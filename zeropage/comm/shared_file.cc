#include "zeropage/comm/shared_file.h"

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

SharedFile::SharedFile(SharedFile&& other) noexcept { *this = std::move(other); }

SharedFile& SharedFile::operator=(SharedFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  std::swap(unlink_at_end_, other.unlink_at_end_);
  return *this;
}

SharedFile::~SharedFile() {
  unlink();
  if (fd_ >= 0) close(fd_);
}

void SharedFile::unlink() {
  if (std::exchange(unlink_at_end_, false)) ::unlink(path_.c_str());
}

void reserve_shared_file(int fd, const std::string& path, std::int64_t bytes) {
  int error = 0;
  do {
    error = posix_fallocate(fd, 0, std::max<std::int64_t>(bytes, 1));
  } while (error == EINTR);
  if (error == 0) return;
  struct statvfs space {};
  fstatvfs(fd, &space);
  throw IoError(
      fmt::format("cannot reserve {} bytes of shared memory at {}: {}; the file system has {} bytes free of {}. "
                  "Enlarge it (docker: --shm-size, Kubernetes: an emptyDir with medium Memory at /dev/shm) or remove "
                  "files of dead jobs from it",
                  bytes, path, std::strerror(error),
                  static_cast<std::int64_t>(space.f_bavail) * static_cast<std::int64_t>(space.f_frsize),
                  static_cast<std::int64_t>(space.f_blocks) * static_cast<std::int64_t>(space.f_frsize)));
}

SharedFile create_shared_file(Backing backing, const std::string& name, std::int64_t bytes) {
  if (backing == Backing::kAnonymousFile) {
    const int fd = memfd_create("zeropage", MFD_CLOEXEC);
    if (fd < 0) throw IoError(fmt::format("memfd_create failed: {}", std::strerror(errno)));
    SharedFile file(fd, fmt::format("/proc/{}/fd/{}", getpid(), fd), false);
    if (fchmod(fd, 0600) != 0 || ftruncate(fd, bytes) != 0) {
      throw IoError(fmt::format("cannot size shared memory to {} bytes: {}", bytes, std::strerror(errno)));
    }
    return file;
  }
  const std::string path = "/dev/shm/" + name;
  const int fd = open(path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) throw IoError(fmt::format("cannot create {}: {}", path, std::strerror(errno)));
  SharedFile file(fd, path, true);
  reserve_shared_file(fd, path, bytes);
  return file;
}

SharedFile open_shared_file(const std::string& path, std::int64_t bytes) {
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) throw IoError(fmt::format("cannot open {}: {}", path, std::strerror(errno)));
  SharedFile file(fd, path, false);
  struct stat status {};
  if (fstat(fd, &status) != 0 || status.st_uid != geteuid() || status.st_size < bytes) {
    throw IoError(fmt::format("{} belongs to user {} and has {} bytes; expected user {} and at least {} bytes", path,
                              status.st_uid, status.st_size, geteuid(), bytes));
  }
  return file;
}

}  // namespace zeropage::comm
