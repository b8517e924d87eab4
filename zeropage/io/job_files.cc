#include "zeropage/io/job_files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "zeropage/base/error.h"

namespace zeropage::io {
namespace {

constexpr const char* kPrefix = "zeropage-store-";
constexpr const char* kFileName = "state";
constexpr int kNameAttempts = 100;

[[noreturn]] void fail(const std::string& what, const std::string& path, int error) {
  throw IoError(fmt::format("{} {}: {}", what, path, std::strerror(error)));
}

[[noreturn]] void fail_full(const std::string& path, std::int64_t needed) {
  throw IoError(
      fmt::format("no space for the store at {}: it needs {} bytes, {} are free. Free space, add a folder to "
                  "nvme_path, or use more ranks",
                  path, needed, free_bytes(path)));
}

/// The directory, opened and locked; none when another process holds the lock or the directory does not exist any more.
Descriptor try_lock(const std::string& directory) {
  Descriptor lock(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!lock || ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) return Descriptor();
  // Between open and flock its last owner may have removed it. Then the lock is of a removed directory.
  struct stat locked {};
  struct stat named {};
  const bool same = ::fstat(lock.get(), &locked) == 0 && ::lstat(directory.c_str(), &named) == 0 &&
                    locked.st_ino == named.st_ino && locked.st_dev == named.st_dev;
  return same ? std::move(lock) : Descriptor();
}

/// Step 1. Directories that cannot be removed stay. They do no harm.
void sweep(const std::string& folder) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    if (!entry.path().filename().string().starts_with(kPrefix)) continue;
    const Descriptor lock = try_lock(entry.path().string());
    if (!lock) continue;
    ::unlinkat(lock.get(), kFileName, 0);
    ::rmdir(entry.path().c_str());
  }
}

void require_folder(const std::string& folder) {
  struct stat found {};
  if (::stat(folder.c_str(), &found) != 0) fail("the store's folder", folder, errno);
  if (!S_ISDIR(found.st_mode)) fail("the store's folder", folder, ENOTDIR);
}

}  // namespace

std::int64_t free_bytes(const std::string& path) {
  struct statvfs found {};
  if (::statvfs(path.c_str(), &found) != 0) return -1;
  return static_cast<std::int64_t>(found.f_bavail) * static_cast<std::int64_t>(found.f_frsize);
}

JobDirectory::JobDirectory(const std::string& folder, const std::string& owner) {
  require_folder(folder);
  sweep(folder);
  for (int attempt = 0; attempt < kNameAttempts; ++attempt) {
    path_ = fmt::format("{}/{}{}-XXXXXX", folder, kPrefix, owner);
    if (::mkdtemp(path_.data()) == nullptr) fail("make a directory for the store in", folder, errno);
    lock_ = try_lock(path_);
    if (lock_) return;
  }
  throw IoError(fmt::format(
      "cannot lock a directory in {}: other processes locked or removed {} new ones at once. Does this file system "
      "support flock?",
      folder, kNameAttempts));
}

JobDirectory::~JobDirectory() {
  if (lock_) ::rmdir(path_.c_str());
}

JobFile::JobFile(const std::string& folder, const std::string& owner, std::int64_t bytes)
    : directory_(folder, owner), path_(directory_.path() + "/" + kFileName) {
  open();
  grow(bytes);
}

void JobFile::open() {
  constexpr int kFlags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  file_ = Descriptor(::open(path_.c_str(), kFlags, 0600));
  if (!file_) fail("create", path_, errno);
  // Set now, not when the file is created: where it is refused, open() would have left the file in the directory.
  if (::unlink(path_.c_str()) != 0) fail("unlink", path_, errno);
  if (::fcntl(file_.get(), F_SETFL, O_DIRECT) != 0) note_ = "no direct I/O here: the store uses the page cache";
  struct statfs found {};
  if (::fstatfs(file_.get(), &found) == 0 && found.f_type == TMPFS_MAGIC) {
    note_ = "tmpfs is memory, not a disk";
  }
}

void JobFile::grow(std::int64_t bytes) {
  if (bytes <= bytes_) return;
  const std::int64_t more = bytes - bytes_;
  const std::int64_t free = free_bytes(directory_.path());
  if (free >= 0 && more > free) fail_full(path_, more);
  reserve(bytes);
  bytes_ = bytes;
}

void JobFile::reserve(std::int64_t bytes) {
  const std::int64_t more = bytes - bytes_;
  if (::fallocate(file_.get(), 0, bytes_, more) == 0) return;
  const int error = errno;
  if (error == ENOSPC || error == EDQUOT) fail_full(path_, more);
  if (error != EOPNOTSUPP) fail(fmt::format("reserve {} bytes for the store at", more), path_, error);
  if (::ftruncate(file_.get(), bytes) != 0) fail(fmt::format("size of {} bytes for", bytes), path_, errno);
  if (bytes_ > 0) return;
  note_ += (note_.empty() ? "" : "; ") + std::string("this file system reserves no space: it may run out later");
}

}  // namespace zeropage::io
