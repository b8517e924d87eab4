#include "zeropage/launch/fd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "zeropage/base/error.h"

namespace zeropage::launch {

void Fd::reset(int fd) {
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

Pipe make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw_errno("cannot make a pipe", "raise the limit of open files (ulimit -n)");
  return Pipe{Fd(ends[0]), Fd(ends[1])};
}

void throw_errno(const std::string& what, const std::string& hint) {
  throw IoError(fmt::format("{}: {}; {}", what, std::strerror(errno), hint));
}

}  // namespace zeropage::launch
