#include "zeropage/report/append_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/base/log.h"

namespace zeropage::report {
namespace {

constexpr std::int64_t kBlockBytes = 1 << 16;

std::int64_t size_of(int fd) {
  struct stat status {};
  return ::fstat(fd, &status) == 0 ? status.st_size : 0;
}

/// Reads up to `bytes` bytes at `offset`, fewer at the end of the file.
std::string read_at(int fd, std::int64_t offset, std::int64_t bytes) {
  std::string text(static_cast<std::size_t>(bytes), '\0');
  const ssize_t got = ::pread(fd, text.data(), text.size(), offset);
  text.resize(static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
  return text;
}

/// The end of the last complete line; 0 when there is none.
std::int64_t end_of_last_line(int fd, std::int64_t size) {
  while (size > 0) {
    const std::int64_t begin = std::max<std::int64_t>(0, size - kBlockBytes);
    const std::size_t found = read_at(fd, begin, size - begin).rfind('\n');
    if (found != std::string::npos) return begin + static_cast<std::int64_t>(found) + 1;
    size = begin;
  }
  return 0;
}

}  // namespace

AppendFile::AppendFile(std::string path, std::string_view begins) : path_(std::move(path)) {
  const auto folder = std::filesystem::path(path_).parent_path();
  std::error_code error;
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  file_.reset(::open(path_.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0666));
  if (!file_) {
    throw IoError(fmt::format("{}: metrics cannot be written there: {}; name another path in the configuration", path_,
                              error ? error.message() : std::strerror(errno)));
  }
  mend(begins);
}

AppendFile::~AppendFile() { close(); }

bool AppendFile::is_empty() const { return size_of(file_.get()) == 0; }

void AppendFile::write(std::string_view line) {
  if (file_ && !append(line)) lose(errno);
}

void AppendFile::close() {
  if (file_ && lost_ > 0) log_warn(fmt::format("{}: {} lines of metrics could not be written", path_, lost_));
  file_.reset();
}

void AppendFile::mend(std::string_view begins) {
  const int fd = file_.get();
  const std::int64_t size = size_of(fd);
  if (size == 0 || read_at(fd, size - 1, 1) == "\n") return;
  const std::string start = read_at(fd, 0, static_cast<std::int64_t>(begins.size()));
  const bool is_ours = begins.starts_with(start);  // if the file is shorter, its first line is incomplete
  if (is_ours ? ::ftruncate(fd, end_of_last_line(fd, size)) != 0 : !append("\n")) lose(errno);
}

/// Returns false and sets errno when not all bytes could be written. The file is then unchanged.
bool AppendFile::append(std::string_view bytes) {
  const int fd = file_.get();
  const std::int64_t before = size_of(fd);
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t written = ::write(fd, bytes.data() + done, bytes.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      const int reason = written < 0 ? errno : ENOSPC;
      if (done > 0) (void)!::ftruncate(fd, before);
      errno = reason;
      return false;
    }
    done += static_cast<std::size_t>(written);
  }
  return true;
}

void AppendFile::lose(int error) {
  if (lost_++ > 0) return;
  log_warn(
      fmt::format("{}: metrics cannot be written: {}; training continues without them", path_, std::strerror(error)));
}

}  // namespace zeropage::report
