/// \file
/// The exit codes of processes, by the reason of their end. The launcher, C++ programs and the Python package use the
/// same codes, so that a script which starts jobs can decide whether to start one again.
#pragma once

#include <exception>

#include "zeropage/base/error.h"

namespace zeropage {

constexpr int kConfigExitCode = 64;      ///< options, files, the configuration or the order of calls cannot be used
constexpr int kCheckpointExitCode = 65;  ///< a checkpoint cannot be written or cannot be trusted
constexpr int kBugExitCode = 70;         ///< a bug of Zeropage
constexpr int kIoExitCode = 74;          ///< the operating system refused or failed an operation
constexpr int kRetryExitCode = 75;       ///< a rank or a host was lost: the job may succeed if it is started again

/// Not a failure: a run has saved a checkpoint after SIGTERM and ends (zeropage.preemption_folder). Its exit code is 0.
class Preempted : public Error {
 public:
  using Error::Error;
};

/// The exit code for an error that ends a process: one of the codes above by the kind of the error, or `otherwise` for
/// errors of other kinds.
inline int exit_code(const std::exception& error, int otherwise = 1) {
  if (dynamic_cast<const Preempted*>(&error)) return 0;
  if (dynamic_cast<const ConfigError*>(&error) || dynamic_cast<const UsageError*>(&error)) return kConfigExitCode;
  if (dynamic_cast<const PeerError*>(&error) || dynamic_cast<const TimeoutError*>(&error)) return kRetryExitCode;
  if (dynamic_cast<const CheckpointError*>(&error)) return kCheckpointExitCode;
  if (dynamic_cast<const IoError*>(&error)) return kIoExitCode;
  return otherwise;
}

}  // namespace zeropage
