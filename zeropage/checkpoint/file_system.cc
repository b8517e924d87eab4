#include "zeropage/checkpoint/file_system.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "zeropage/base/error.h"

namespace zeropage::checkpoint {
namespace {

constexpr std::int64_t kWriteBehindBytes = std::int64_t{8} << 20;

[[noreturn]] void fail(const char* operation, const std::string& path, int error) {
  throw IoError(fmt::format("{} {}: {}", operation, path, std::strerror(error)));
}

class Descriptor {
 public:
  Descriptor(const std::string& path, int flags) : value_(::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, 0666)) {
    if (value_ < 0) fail("open", path, errno);
  }
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }
  int release() { return std::exchange(value_, -1); }

 private:
  int value_;
};

[[noreturn]] void fail_for_room(const std::string& path, std::int64_t written, std::int64_t wanted, int error) {
  struct statvfs found {};
  std::string free;
  if (::statvfs(path.c_str(), &found) == 0) {
    free = fmt::format(", {} bytes are free", static_cast<std::uint64_t>(found.f_bavail) * found.f_frsize);
  }
  throw IoError(fmt::format("write {}: {}; {} bytes are needed from offset {} on{}: free space, or save elsewhere",
                            path, std::strerror(error), wanted, written, free));
}

bool is_lack_of_room(int error) { return error == ENOSPC || error == EDQUOT || error == EFBIG; }

class SystemWritable : public WritableFile {
 public:
  SystemWritable(const std::string& path, std::int64_t bytes)
      : path_(path), file_(path, O_WRONLY | O_CREAT | O_EXCL), wanted_(bytes) {
    // Not every file system can; where it cannot a full disk is found later.
    if (bytes > 0 && ::fallocate(file_.get(), 0, 0, bytes) != 0 && is_lack_of_room(errno)) {
      fail_for_room(path_, 0, bytes, errno);
    }
  }

  void append(const std::byte* data, std::int64_t bytes) override {
    while (bytes > 0) {
      const ssize_t written = ::write(file_.get(), data, static_cast<std::size_t>(bytes));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0 && is_lack_of_room(errno)) {
        fail_for_room(path_, written_, std::max(bytes, wanted_ - written_), errno);
      }
      if (written <= 0) fail("write", path_, written < 0 ? errno : EIO);
      data += written;
      bytes -= written;
      written_ += written;
    }
    if (written_ - started_ >= kWriteBehindBytes) start_write_behind();
  }

  void sync() override {
    if (::fsync(file_.get()) != 0) fail("fsync", path_, errno);
  }

  void close() override {
    if (::close(file_.release()) != 0) fail("close", path_, errno);
  }

 private:
  /// The disk starts on what is there, so that sync() does not wait for all of it. Nothing is waited for here.
  void start_write_behind() {
    const int result = ::sync_file_range(file_.get(), started_, written_ - started_, SYNC_FILE_RANGE_WRITE);
    if (result != 0 && errno != ENOSYS && errno != EINVAL && errno != ESPIPE) fail("write", path_, errno);
    started_ = written_;
  }

  std::string path_;
  Descriptor file_;
  std::int64_t wanted_;
  std::int64_t written_ = 0;
  std::int64_t started_ = 0;  ///< the disk has been told of the bytes before
};

class SystemReadable : public ReadableFile {
 public:
  // O_NONBLOCK: to open a pipe must not wait for a writer before the check below refuses it.
  explicit SystemReadable(const std::string& path) : path_(path), file_(path, O_RDONLY | O_NONBLOCK) {
    struct stat found {};
    if (::fstat(file_.get(), &found) != 0) fail("stat", path, errno);
    if (!S_ISREG(found.st_mode)) throw IoError(fmt::format("open {}: it is not a regular file", path));
    bytes_ = found.st_size;
  }

  std::int64_t bytes() const override { return bytes_; }

  void read(std::int64_t offset, std::byte* out, std::int64_t bytes) const override {
    while (bytes > 0) {
      const ssize_t got = ::pread(file_.get(), out, static_cast<std::size_t>(bytes), offset);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail("read", path_, errno);
      if (got == 0) throw IoError(fmt::format("read {}: it ends at offset {}, {} bytes early", path_, offset, bytes));
      out += got;
      offset += got;
      bytes -= got;
    }
  }

 private:
  std::string path_;
  Descriptor file_;
  std::int64_t bytes_ = 0;
};

class HeldLock : public DirectoryLock {
 public:
  explicit HeldLock(int descriptor) : descriptor_(descriptor) {}
  ~HeldLock() override { ::close(descriptor_); }

 private:
  int descriptor_;
};

class SystemFiles : public FileSystem {
 public:
  std::unique_ptr<WritableFile> create(const std::string& path, std::int64_t bytes) override {
    return std::make_unique<SystemWritable>(path, bytes);
  }

  std::unique_ptr<ReadableFile> open(const std::string& path) override {
    return std::make_unique<SystemReadable>(path);
  }

  void make_directory(const std::string& path) override {
    if (::mkdir(path.c_str(), 0777) != 0) fail("mkdir", path, errno);
  }

  void make_directories(const std::string& path) override {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error) fail("mkdir", path, error.value());
  }

  void sync_directory(const std::string& path) override {
    const Descriptor directory(path, O_RDONLY | O_DIRECTORY);
    if (::fsync(directory.get()) != 0) fail("fsync", path, errno);
  }

  void rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) fail("rename to", to, errno);
  }

  void exchange(const std::string& a, const std::string& b) override {
    if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) != 0) fail("exchange", b, errno);
  }

  void remove_all(const std::string& path) override {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    if (error) fail("remove", path, error.value());
  }

  bool exists(const std::string& path) override {
    std::error_code error;
    return std::filesystem::exists(std::filesystem::symlink_status(path, error));
  }

  std::vector<std::string> list(const std::string& path) override {
    std::vector<std::string> names;
    std::error_code error;
    for (std::filesystem::directory_iterator entry(path, error), end; !error && entry != end; entry.increment(error)) {
      names.push_back(entry->path().filename().string());
    }
    if (error && error != std::errc::no_such_file_or_directory) fail("list", path, error.value());
    std::sort(names.begin(), names.end());
    return names;
  }

  std::unique_ptr<DirectoryLock> try_lock(const std::string& path) override {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (descriptor < 0) return nullptr;
    auto lock = std::make_unique<HeldLock>(descriptor);
    struct stat found {};
    const bool held = ::flock(descriptor, LOCK_EX | LOCK_NB) == 0;
    // A directory that was removed before the lock came has no links left.
    return held && ::fstat(descriptor, &found) == 0 && found.st_nlink > 0 ? std::move(lock) : nullptr;
  }
};

}  // namespace

FileSystem& system_files() {
  static SystemFiles files;  // without state
  return files;
}

std::string read_text(FileSystem& files, const std::string& path, std::int64_t max_bytes) {
  const auto file = files.open(path);
  if (file->bytes() > max_bytes) {
    throw CheckpointError(fmt::format("{} has {} bytes; expected at most {}", path, file->bytes(), max_bytes));
  }
  std::string text(static_cast<std::size_t>(file->bytes()), '\0');
  file->read(0, reinterpret_cast<std::byte*>(text.data()), file->bytes());
  return text;
}

void write_text(FileSystem& files, const std::string& path, const std::string& text) {
  const auto file = files.create(path, static_cast<std::int64_t>(text.size()));
  file->append(reinterpret_cast<const std::byte*>(text.data()), static_cast<std::int64_t>(text.size()));
  file->sync();
  file->close();
}

}  // namespace zeropage::checkpoint
