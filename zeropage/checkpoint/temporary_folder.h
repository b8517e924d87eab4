/// \file
/// Folders with temporary names. Their content is prepared there and becomes visible by one rename.
#pragma once

#include <memory>
#include <string>

#include "zeropage/checkpoint/file_system.h"

namespace zeropage::checkpoint {

/// `<folder>/.<name>.<16 random digits>.tmp`
std::string temporary_path(const std::string& folder, const std::string& name);

/// Whether a directory contains only files of saves and exports, by their names.
bool holds_only_our_files(FileSystem& files, const std::string& directory);

/// Removes the remains of dead processes in `folder`: directories that have such a name, contain only our files and are
/// not locked. Everything else stays. Errors: IoError.
void remove_leftovers(FileSystem& files, const std::string& folder);

/// Such a directory, made and locked. The destructor removes it unless it was committed.
class TemporaryFolder {
 public:
  /// Errors: IoError.
  TemporaryFolder(FileSystem& files, const std::string& folder, const std::string& name);
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }

  /// Call this when the directory has its final name, or is already removed.
  void committed() { path_.clear(); }

 private:
  FileSystem& files_;
  std::string path_;
  std::unique_ptr<DirectoryLock> lock_;
};

}  // namespace zeropage::checkpoint
