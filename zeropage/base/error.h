/// \file
/// The exceptions of the project. Every message names what was expected, what was found, where (config key, file, rank,
/// parameter) and what to do. The Python package maps each class to a Python exception of the same name.
#pragma once

#include <stdexcept>
#include <string>

namespace zeropage {

/// Base of all errors thrown by zeropage.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The user's configuration or arguments cannot be used. Python: also a ValueError.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// The API was called in an order or with objects that make no sense (`step()` before `backward()`).
class UsageError : public Error {
 public:
  using Error::Error;
};

/// The operating system refused or failed an operation on a file or a device. Python: also an OSError.
class IoError : public Error {
 public:
  using Error::Error;
};

/// A checkpoint cannot be written, or its content cannot be trusted.
class CheckpointError : public Error {
 public:
  using Error::Error;
};

/// Another rank died, failed, or does something different from this one.
class PeerError : public Error {
 public:
  using Error::Error;
};

/// Something did not happen in time. Python: also a TimeoutError.
class TimeoutError : public Error {
 public:
  using Error::Error;
};

}  // namespace zeropage
