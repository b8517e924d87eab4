/// \file
/// After a fork the child does not own its parent's rank: it takes part in no collective and sends nothing to the
/// peers.
#pragma once

#include <sys/types.h>

namespace zeropage::comm {

/// The process that made a communicator.
class OwnerProcess {
 public:
  explicit OwnerProcess(int rank);

  /// True in a process that was forked from the owner. Costs a system call.
  bool is_forked() const;

  /// Errors: UsageError in a forked process, with both processes and advice.
  void throw_if_forked() const;

 private:
  const int rank_;
  const pid_t pid_;
};

}  // namespace zeropage::comm
