/// \file
/// Two processes watch a job, so that each can clean up when the other dies:
///
/// 1. The front process is the one that was started. It has the process id that other programs know, passes signals on,
///    and waits.
/// 2. The supervisor, its child, starts the ranks and does all the work. It is in a process group of its own, so that
///    signals of the terminal's keys do not reach it. The ranks are in the front's group, so that they get these
///    signals and rank 0 can read the terminal.
/// 3. There is a pipe from the front to the supervisor. When the front dies, in any way, the pipe ends, and the
///    supervisor kills everything that it started. Both adopt orphans, so processes in sessions of their own are
///    killed, too.
/// 4. If the supervisor dies, the kernel kills the ranks (parent-death signal), and the front kills the rest.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <functional>

namespace zeropage::launch {

/// The arguments of a supervisor from its front process.
struct GuardContext {
  int control_fd = -1;      ///< one byte per signal (see kAlreadyDelivered); its end means that the front is dead
  sigset_t rank_mask = {};  ///< the signal mask that the front was started with
  pid_t front_group = 0;    ///< the front's process group
};

class Guard {
 public:
  /// Blocks the signals to pass on and adopts orphans. Errors: IoError.
  Guard();

  /// Runs `supervise` in a process of its own. Returns its result, or the exit code of its exception, after it and all
  /// its processes have ended. Errors: IoError when no process can be made.
  int run(const std::function<int(const GuardContext&)>& supervise);

  /// Whether a signal to end has arrived.
  bool was_signalled() const { return was_signalled_; }

 private:
  int wait_for(pid_t supervisor, int control_fd);

  sigset_t watched_ = {};
  sigset_t users_ = {};
  bool was_signalled_ = false;
};

/// Opens descriptors 0, 1 and 2 if they are closed, so that no pipe of ours becomes a standard stream of a rank.
void open_standard_streams();

}  // namespace zeropage::launch
