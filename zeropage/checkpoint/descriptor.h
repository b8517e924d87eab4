/// \file
/// Opens files, and throws the errors of failed calls on them.
#pragma once

#include <fcntl.h>
#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "zeropage/base/descriptor.h"
#include "zeropage/base/error.h"

namespace zeropage::checkpoint {

[[noreturn]] inline void fail(const char* operation, const std::string& path, int error) {
  throw IoError(fmt::format("{} {}: {}", operation, path, std::strerror(error)));
}

/// Opens a file; refuses symbolic links. Errors: IoError.
inline Descriptor open_file(const std::string& path, int flags) {
  Descriptor file(::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, 0666));
  if (!file) fail("open", path, errno);
  return file;
}

}  // namespace zeropage::checkpoint
