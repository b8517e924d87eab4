/// \file
/// Handing an open file to other processes of this host and user, under a name that the kernel forgets with the process
/// that offers it.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>

#include "zeropage/base/descriptor.h"

namespace zeropage::comm {

/// Offers one file under a name, which is a local socket's in the kernel's own table ("abstract"), not in a file
/// system.
class FileOffer {
 public:
  /// Errors: PeerError when somebody offers something under this name already, with who that is; IoError.
  explicit FileOffer(const std::string& name);

  /// Gives a copy of `fd` to all who have asked and are of this process's user. Does not wait.
  void serve(int fd) const;

 private:
  Descriptor socket_;
};

/// Asks for the file under `name`. None: nobody offers one, or nobody has answered within `patience`. Errors: IoError
/// when the name belongs to another user.
Descriptor request_file(const std::string& name, std::chrono::milliseconds patience);

}  // namespace zeropage::comm
