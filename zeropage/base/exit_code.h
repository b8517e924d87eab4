/// \file
/// What the exit code of a process says about how it ended. The launcher, C++ programs and the Python package use the
/// same codes, so that whoever starts a job can tell what may be started again.
#pragma once

#include <exception>

#include "zeropage/base/error.h"

namespace zeropage {

constexpr int kConfigExitCode = 64;      ///< options, files, the configuration or the order of calls cannot be used
constexpr int kCheckpointExitCode = 65;  ///< a checkpoint cannot be written or must not be believed
constexpr int kBugExitCode = 70;         ///< a mistake of zeropage's own
constexpr int kIoExitCode = 74;          ///< the system refused or failed something
constexpr int kRetryExitCode = 75;       ///< a rank or a host was lost: started again, the job may succeed

/// Not a failure: SIGTERM has ended a run that has saved itself (zeropage.preemption_folder). Its exit code is 0.
class Preempted : public Error {
 public:
  using Error::Error;
};

/// The code for an error that ends a process: one of the above that says what kind it is, `otherwise` for errors that
/// are not of these kinds.
inline int exit_code(const std::exception& error, int otherwise = 1) {
  if (dynamic_cast<const Preempted*>(&error)) return 0;
  if (dynamic_cast<const ConfigError*>(&error) || dynamic_cast<const UsageError*>(&error)) return kConfigExitCode;
  if (dynamic_cast<const PeerError*>(&error) || dynamic_cast<const TimeoutError*>(&error)) return kRetryExitCode;
  if (dynamic_cast<const CheckpointError*>(&error)) return kCheckpointExitCode;
  if (dynamic_cast<const IoError*>(&error)) return kIoExitCode;
  return otherwise;
}

}  // namespace zeropage
