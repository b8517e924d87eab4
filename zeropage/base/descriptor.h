/// \file
/// Owner of a file descriptor.
#pragma once

#include <unistd.h>

#include <utility>

namespace zeropage {

/// Closes its descriptor in its destructor. -1 means that there is none.
class Descriptor {
 public:
  explicit Descriptor(int value = -1) : value_(value) {}
  Descriptor(Descriptor&& other) noexcept : value_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    reset(other.release());
    return *this;
  }
  ~Descriptor() { reset(); }

  int get() const { return value_; }
  explicit operator bool() const { return value_ >= 0; }

  /// Gives the descriptor to the caller, who closes it.
  int release() { return std::exchange(value_, -1); }

  /// Closes the owned descriptor, and owns `value` from now on.
  void reset(int value = -1) {
    if (value_ >= 0) ::close(value_);
    value_ = value;
  }

 private:
  int value_;
};

}  // namespace zeropage
