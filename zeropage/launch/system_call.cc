#include "zeropage/launch/system_call.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "zeropage/base/error.h"

namespace zeropage::launch {

Pipe make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw_errno("cannot make a pipe", "raise the limit of open files (ulimit -n)");
  return Pipe{Descriptor(ends[0]), Descriptor(ends[1])};
}

void throw_errno(const std::string& what, const std::string& hint) {
  throw IoError(fmt::format("{}: {}; {}", what, std::strerror(errno), hint));
}

}  // namespace zeropage::launch
