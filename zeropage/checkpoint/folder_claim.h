/// \file
/// Who saves into a folder. Two jobs in one folder would replace and remove each other's steps, so the first one that
/// saves holds the folder until it ends, and the second one is refused.
///
///   1. Before its first save a job locks `<folder>/.lock` and writes into it who it is. The system frees the lock when
///      the process ends, however it ends. Before later saves it looks whether the folder is still on the file system
///      of that lock.
///   2. Every step says in its manifest which run saved it. A job that loads a step continues that run. A job that
///      starts from nothing is a new run. A run removes only its own old steps.
///
/// Where a file system has no locks, the second rule alone holds.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "zeropage/checkpoint/file_system.h"

namespace zeropage::checkpoint {

inline constexpr const char* kLockName = ".lock";

/// A run: one training, over as many restarts as it takes. Steps of it are saved by one process at a time.
class TrainingRun {
 public:
  /// A new run.
  TrainingRun();

  const std::string& id() const { return id_; }

  /// Goes on with the run that saved a step; an empty id (steps of older releases have none) changes nothing.
  void continue_as(const std::string& id);

  /// Makes the folder this process's until the object is gone; of more than 16 folders some are let go. Several runs of
  /// one process may share a folder. Errors: CheckpointError when another process has it, naming that process, and what
  /// to do, or when the folder is on another file system than when it was claimed; IoError.
  void claim(FileSystem& files, const std::string& folder);

 private:
  std::string id_;
  std::map<std::string, std::shared_ptr<FileLock>> claimed_;
};

/// So many random hexadecimal digits.
std::string random_digits(int count);

}  // namespace zeropage::checkpoint
