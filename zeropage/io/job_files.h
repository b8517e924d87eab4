/// \file
/// The files of a store: one in each folder. They are open, have no name, and their space is reserved.
///
/// 1. The remains of dead jobs in the folder are removed: every zeropage-store-* directory whose lock is free.
/// 2. A directory with a unique name is made and locked (flock: the system frees the lock when the process ends, in any
///    way). If step 1 of another job removed it first, the next name is tried.
/// 3. The file is created in it and unlinked at once, while it is empty. So no bytes remain, whatever happens later.
/// 4. Its space is reserved, so that a full disk is an error here and not at step 10,000.
/// 5. At the end the directory is removed. Nothing else in the folder is ever changed.
#pragma once

#include <cstdint>
#include <string>

#include "zeropage/base/descriptor.h"

namespace zeropage::io {

/// A locked directory with a unique name. The destructor removes it.
class JobDirectory {
 public:
  /// Steps 1 and 2. Errors: IoError.
  JobDirectory(const std::string& folder, const std::string& owner);
  JobDirectory(JobDirectory&&) = default;
  ~JobDirectory();

  const std::string& path() const { return path_; }

 private:
  std::string path_;
  Descriptor lock_;
};

class JobFile {
 public:
  /// Steps 1 to 4. `folder` must exist; `owner` is a part of the directory's name ("rank-3"). Errors: IoError: no such
  /// folder, no permission, or a full disk (needed and free bytes).
  JobFile(const std::string& folder, const std::string& owner, std::int64_t bytes);

  /// Reserves more, up to `bytes` in all. Errors: IoError; the file is then unchanged.
  void grow(std::int64_t bytes);

  int descriptor() const { return file_.get(); }

  /// For messages: the path at which the file was created.
  const std::string& path() const { return path_; }
  std::int64_t bytes() const { return bytes_; }

  /// A note for people when something is unusual, such as "tmpfs is memory, not a disk"; otherwise empty.
  const std::string& note() const { return note_; }

 private:
  void open();
  void reserve(std::int64_t bytes);

  JobDirectory directory_;
  std::string path_;
  std::string note_;
  std::int64_t bytes_ = 0;
  Descriptor file_;
};

/// Free bytes of the file system of `path` for this user; -1: unknown.
std::int64_t free_bytes(const std::string& path);

}  // namespace zeropage::io
