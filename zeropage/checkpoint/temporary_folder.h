/// \file
/// Folders with temporary names, in which something is prepared that one rename will show.
#pragma once

#include <memory>
#include <string>

#include "zeropage/checkpoint/file_system.h"

namespace zeropage::checkpoint {

/// `<folder>/.<name>.<16 random digits>.tmp`
std::string temporary_path(const std::string& folder, const std::string& name);

/// Whether every name in a directory is one that a save or an export gives to its files.
bool holds_only_our_files(FileSystem& files, const std::string& directory);

/// Removes what processes that died have left in `folder`: directories that have such a name, hold only our files and
/// are locked by nobody. Everything else stays. Errors: IoError.
void remove_leftovers(FileSystem& files, const std::string& folder);

/// Such a directory, made and locked. It is removed with the object unless it was committed.
class TemporaryFolder {
 public:
  /// Errors: IoError.
  TemporaryFolder(FileSystem& files, const std::string& folder, const std::string& name);
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }

  /// It has got its final name, or is removed already.
  void committed() { path_.clear(); }

 private:
  FileSystem& files_;
  std::string path_;
  std::unique_ptr<DirectoryLock> lock_;
};

}  // namespace zeropage::checkpoint
