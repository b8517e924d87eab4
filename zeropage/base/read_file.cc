#include "zeropage/base/read_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "zeropage/base/descriptor.h"
#include "zeropage/base/error.h"

namespace zeropage {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// Waits until there is something to read, or until the last writer of a pipe has closed it. Returns an errno, or 0.
int wait_for_input(int fd, Clock::time_point deadline) {
  pollfd entry{fd, POLLIN, 0};
  while (true) {
    const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now()).count();
    const int ready = ::poll(&entry, 1, static_cast<int>(std::max<std::int64_t>(left, 0)));
    if (ready > 0) return 0;
    if (ready == 0) return ETIMEDOUT;
    if (errno != EINTR) return errno;
  }
}

/// Appends up to `bytes` bytes of `fd`, which does not block. Returns an errno, or 0.
int append(int fd, std::size_t bytes, Clock::time_point deadline, std::string& text) {
  std::array<char, 1 << 16> piece;
  bool was_written_to = false;  // a named pipe reads as ended until its first writer opens it
  while (text.size() < bytes) {
    const ssize_t got = ::read(fd, piece.data(), std::min(piece.size(), bytes - text.size()));
    if (got > 0) {
      text.append(piece.data(), static_cast<std::size_t>(got));
      continue;
    }
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno != EAGAIN) return errno;
    if (got == 0 && (was_written_to || !text.empty())) return 0;
    if (const int error = wait_for_input(fd, deadline)) return error;
    was_written_to = true;
  }
  return 0;
}

}  // namespace

std::string read_start(const std::string& path, const std::string& what, const std::string& advice, std::size_t bytes,
                       milliseconds patience) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  std::string text;
  const int error = file ? append(file.get(), bytes, Clock::now() + patience, text) : errno;
  if (error == 0) return text;
  const std::string reason = error == ETIMEDOUT
                                 ? fmt::format("it is a pipe that did not end within {} ms", patience.count())
                                 : std::strerror(error);
  throw IoError(fmt::format("cannot read {} {}: {}; {}", what, path, reason, advice));
}

std::string read_file(const std::string& path, const std::string& what, const std::string& advice,
                      std::size_t max_bytes, milliseconds patience) {
  std::string text = read_start(path, what, advice, max_bytes + 1, patience);
  if (text.size() <= max_bytes) return text;
  throw ConfigError(fmt::format("cannot read {} {}: expected at most {} bytes, got more; is this the right file?", what,
                                path, max_bytes));
}

}  // namespace zeropage
