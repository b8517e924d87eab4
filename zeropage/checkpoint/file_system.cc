#include "zeropage/checkpoint/file_system.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"
#include "zeropage/checkpoint/descriptor.h"
#include "zeropage/checkpoint/new_file.h"

namespace zeropage::checkpoint {
namespace {

class SystemReadable : public ReadableFile {
 public:
  // O_NONBLOCK: opening a pipe must not wait for a writer before the check below refuses the pipe.
  explicit SystemReadable(const std::string& path) : path_(path), file_(open_file(path, O_RDONLY | O_NONBLOCK)) {
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
  explicit HeldLock(Descriptor directory) : directory_(std::move(directory)) {}

 private:
  Descriptor directory_;
};

/// Whether `path` still names the file: its earlier owner may have removed it.
bool is_named(const std::string& path, const Descriptor& file) {
  struct stat named {
  }, opened{};
  return ::fstat(file.get(), &opened) == 0 && ::lstat(path.c_str(), &named) == 0 && named.st_ino == opened.st_ino &&
         named.st_dev == opened.st_dev;
}

/// A lock of fcntl. It belongs to the process, so children do not inherit it, and network file systems support it, too.
class HeldFileLock : public FileLock {
 public:
  HeldFileLock(std::string path, Descriptor file)
      : path_(std::move(path)), file_(std::move(file)), owner_(::getpid()) {}

  bool on_another_file_system() const override {
    struct stat folder {
    }, opened{};
    const std::string parent = path_.substr(0, path_.rfind('/'));
    return ::fstat(file_.get(), &opened) == 0 && ::stat(parent.c_str(), &folder) == 0 && folder.st_dev != opened.st_dev;
  }

  ~HeldFileLock() override {
    // A forked child has a copy of the object, but not the lock.
    if (owner_ == ::getpid() && is_named(path_, file_)) ::unlink(path_.c_str());
  }

 private:
  std::string path_;
  Descriptor file_;
  pid_t owner_;
};

class SystemFiles : public FileSystem {
 public:
  std::unique_ptr<WritableFile> create(const std::string& path, std::int64_t bytes) override {
    return create_file(path, bytes);
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
    const Descriptor directory = open_file(path, O_RDONLY | O_DIRECTORY);
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
    const bool none = error == std::errc::no_such_file_or_directory || error == std::errc::not_a_directory;
    if (error && !none) fail("list", path, error.value());
    std::sort(names.begin(), names.end());
    return names;
  }

  std::unique_ptr<DirectoryLock> try_lock(const std::string& path) override {
    Descriptor directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
    if (!directory || ::flock(directory.get(), LOCK_EX | LOCK_NB) != 0) return nullptr;
    struct stat found {};
    // A directory that was removed before it was locked has no links.
    if (::fstat(directory.get(), &found) != 0 || found.st_nlink == 0) return nullptr;
    return std::make_unique<HeldLock>(std::move(directory));
  }

  std::unique_ptr<FileLock> try_lock_file(const std::string& path, const std::string& about) override {
    while (true) {
      Descriptor file = open_file(path, O_RDWR | O_CREAT | O_NOFOLLOW);
      struct flock whole {};
      whole.l_type = F_WRLCK;
      whole.l_whence = SEEK_SET;
      if (::fcntl(file.get(), F_SETLK, &whole) != 0) {
        if (errno == EACCES || errno == EAGAIN) return nullptr;
        log_warn(fmt::format("{} cannot be locked ({}): nothing keeps a second job from saving into the same folder",
                             path, std::strerror(errno)));
        ::unlink(path.c_str());
        return std::make_unique<FileLock>();
      }
      if (!is_named(path, file)) continue;
      if (::ftruncate(file.get(), 0) != 0) fail("truncate", path, errno);
      if (::pwrite(file.get(), about.data(), about.size(), 0) != static_cast<ssize_t>(about.size())) {
        log_warn(fmt::format("{} does not say who has locked it: {}", path, std::strerror(errno)));  // a full disk
      }
      return std::make_unique<HeldFileLock>(path, std::move(file));
    }
  }

  std::string full_path(const std::string& path) override {
    std::error_code error;
    const auto full = std::filesystem::weakly_canonical(std::filesystem::absolute(path), error);
    if (error) fail("find", path, error.value());
    return full.string();
  }
};

}  // namespace

FileSystem& system_files() {
  static SystemFiles files;  // has no state
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
