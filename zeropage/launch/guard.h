/// \file
/// Two processes look after a job, so that each can clean up when the other dies:
///
/// 1. The front is what was started. It keeps the process id that is known outside, hands signals on, and waits.
/// 2. The supervisor, its child, starts the ranks and does all the work. It is in a process group of its own, so that
///    the terminal's keys do not reach it; the ranks are in the front's, so that they do reach them, and rank 0 can
///    read the terminal.
/// 3. Front to supervisor there is a pipe. If the front dies, however it dies, the pipe ends, and the supervisor kills
///    everything it started. Both adopt orphans: ranks cannot escape by starting sessions of their own.
/// 4. If the supervisor dies, the kernel kills the ranks (parent-death signal), and the front kills the rest.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <functional>

namespace zeropage::launch {

/// What a supervisor gets from its front.
struct GuardContext {
  int control_fd = -1;      ///< one byte per signal (see kAlreadyDelivered); its end means that the front is dead
  sigset_t rank_mask = {};  ///< the signal mask that the front was started with
  pid_t front_group = 0;    ///< the front's process group
};

class Guard {
 public:
  /// Blocks the signals to hand on and adopts orphans. Errors: IoError.
  Guard();

  /// Runs `supervise` in a process of its own and returns what it returns, or the exit code of the error it throws,
  /// when it has ended and none of its processes is left. Errors: IoError when no process can be made.
  int run(const std::function<int(const GuardContext&)>& supervise);

  /// Whether a signal to end has come.
  bool was_signalled() const { return was_signalled_; }

 private:
  int wait_for(pid_t supervisor, int control_fd);

  sigset_t watched_ = {};
  sigset_t users_ = {};
  bool was_signalled_ = false;
};

/// Descriptors 0, 1 and 2 exist from here on, so that no pipe of ours ends up as a rank's standard stream.
void open_standard_streams();

}  // namespace zeropage::launch
