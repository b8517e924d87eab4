/// \file
/// Owner of a file descriptor, and the error that goes with system calls.
#pragma once

#include <string>
#include <utility>

namespace zeropage::launch {

/// Closes its descriptor when it goes; -1 is none.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~Fd() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void reset(int fd = -1);

 private:
  int fd_ = -1;
};

/// Two ends of a channel: bytes written to `write` come out of `read`.
struct Pipe {
  Fd read;
  Fd write;
};

/// A pipe that no started program inherits. Errors: IoError.
Pipe make_pipe();

/// Throws IoError "what: <text of errno>; hint".
[[noreturn]] void throw_errno(const std::string& what, const std::string& hint);

}  // namespace zeropage::launch
