/// \file
/// The files of a store: one in each folder, open, without a name, and with their space reserved.
///
/// 1. What jobs that died left in the folder goes: every zeropage-store-* directory whose lock is free.
/// 2. A directory of a name of its own is made and locked (flock: the system frees it however the process ends). If a
///    sweeper was faster, the next name is tried.
/// 3. The file is created in it and unlinked at once, while it is empty: whatever happens later, no byte stays behind.
/// 4. Its space is reserved, so that a full disk shows here and not at step 10,000.
/// 5. On the way out the directory is removed. Nothing else in the folder is ever touched.
#pragma once

#include <cstdint>
#include <string>

#include "zeropage/base/descriptor.h"

namespace zeropage::io {

/// A locked directory of its own, removed with its object.
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
  /// Steps 1 to 4. `folder` must exist; `owner` is a word for the directory's name ("rank-3"). Errors: IoError: no such
  /// folder, no permission, or a full disk (needed and free bytes).
  JobFile(const std::string& folder, const std::string& owner, std::int64_t bytes);

  /// Reserves more, up to `bytes` in all. Errors: IoError, and the file is as it was.
  void grow(std::int64_t bytes);

  int descriptor() const { return file_.get(); }

  /// For messages: the path the file was created at.
  const std::string& path() const { return path_; }
  std::int64_t bytes() const { return bytes_; }

  /// What is unusual here, for people: "tmpfs is memory, not a disk"; empty: nothing.
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

/// Bytes that the file system of `path` has for this user; -1: unknown.
std::int64_t free_bytes(const std::string& path);

}  // namespace zeropage::io
