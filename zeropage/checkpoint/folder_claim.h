/// \file
/// Claims of checkpoint folders. Two jobs in one folder would replace and remove each other's checkpoints. So the first
/// job that saves claims the folder until it ends, and a second job is refused.
///
///   1. Before its first save a job locks `<folder>/.lock` and writes its identity into it. The system frees the lock
///      when the process ends, in any way. Before later saves the job checks that the folder is still on the file
///      system of that lock.
///   2. The manifest of every checkpoint names the run that saved it. A job that loads a checkpoint continues its run.
///      A job that starts without one is a new run. A run removes only its own old checkpoints.
///
/// On a file system without locks only the second rule applies.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "zeropage/checkpoint/file_system.h"

namespace zeropage::checkpoint {

inline constexpr const char* kLockName = ".lock";

/// A run: one training, including its restarts. One process at a time saves its checkpoints.
class TrainingRun {
 public:
  /// A new run.
  TrainingRun();

  const std::string& id() const { return id_; }

  /// Continues the run that saved a checkpoint. An empty id (checkpoints of older releases have none) changes nothing.
  void continue_as(const std::string& id);

  /// Claims the folder for this process until the object is destroyed. If there are more than 16 folders, some are
  /// released. Several runs of one process may share a folder. Errors: CheckpointError when another process has it,
  /// with that process and what to do, or when the folder is on another file system than when it was claimed; IoError.
  void claim(FileSystem& files, const std::string& folder);

 private:
  std::string id_;
  std::map<std::string, std::shared_ptr<FileLock>> claimed_;
};

/// `count` random hexadecimal digits.
std::string random_digits(int count);

}  // namespace zeropage::checkpoint
