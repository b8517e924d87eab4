/// \file
/// Passes an open file to other processes of this host and user, under a name that disappears with the offering
/// process.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>

#include "zeropage/base/descriptor.h"

namespace zeropage::comm {

/// Offers one file under a name, which is the name of an "abstract" local socket in the kernel's own table, not in a
/// file system.
class FileOffer {
 public:
  /// Errors: PeerError, with the other process, if one offers something under this name already; IoError.
  explicit FileOffer(const std::string& name);

  /// Sends a copy of `fd` to all processes of the same user that have asked. Does not wait.
  void serve(int fd) const;

 private:
  Descriptor socket_;
};

/// Requests the file under `name`. None: there is no offer, or no answer within `patience`. Errors: IoError when the
/// name belongs to another user.
Descriptor request_file(const std::string& name, std::chrono::milliseconds patience);

}  // namespace zeropage::comm
