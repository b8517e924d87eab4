/// \file
/// Pipes, and errors of system calls.
#pragma once

#include <string>

#include "zeropage/base/descriptor.h"

namespace zeropage::launch {

/// Two ends of a channel: bytes that are written to `write` can be read from `read`.
struct Pipe {
  Descriptor read;
  Descriptor write;
};

/// A pipe that no started program inherits. Errors: IoError.
Pipe make_pipe();

/// Throws IoError "what: <text of errno>; hint".
[[noreturn]] void throw_errno(const std::string& what, const std::string& hint);

}  // namespace zeropage::launch
