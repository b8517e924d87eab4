/// \file
/// Files in memory that processes of one user and host map together. They have no name in a file system, so none can be
/// left behind.
#pragma once

#include <cstdint>
#include <string>

#include "zeropage/base/descriptor.h"

namespace zeropage::comm {

struct SharedFile {
  Descriptor fd;
  std::string
      path;  ///< the path for peers, valid while this process has `fd` open; only processes of the same user can open it
};

enum class Backing {
  kAnonymousFile,  ///< memfd: not limited by the size of /dev/shm, costs memory only where touched
  kTemporaryFile,  ///< in /dev/shm: for kernels or sandboxes that forbid the first; all its memory is reserved at once
};

/// Creates zero-filled shared memory of `bytes`. Errors: IoError with sizes and advice.
SharedFile create_shared_file(Backing backing, std::int64_t bytes);

/// The first kind that works, with all its memory reserved, so that touching it later cannot fail. Errors:
/// IoError.
SharedFile create_reserved_file(std::int64_t bytes);

/// Opens a peer's file. Errors: IoError when it is missing, belongs to another user, or has fewer bytes.
SharedFile open_shared_file(const std::string& path, std::int64_t bytes);

}  // namespace zeropage::comm
