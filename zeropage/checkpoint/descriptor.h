/// \file
/// A file's descriptor, and what a failed call on it throws.
#pragma once

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "zeropage/base/error.h"

namespace zeropage::checkpoint {

[[noreturn]] inline void fail(const char* operation, const std::string& path, int error) {
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

}  // namespace zeropage::checkpoint
