/// \file
/// Starts one rank.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include "zeropage/launch/job_plan.h"
#include "zeropage/launch/system_call.h"

namespace zeropage::launch {

/// Values for a new rank in addition to its plan.
struct SpawnContext {
  int in_fd = 0;
  int out_fd = 1;
  int err_fd = 2;
  pid_t group = 0;     ///< process group to join: the one that gets the signals of the terminal's keys
  sigset_t mask = {};  ///< signal mask to start with: the user's, not the launcher's
};

/// Starts the process and returns its id once its program runs. It is killed when the calling process dies.
/// Errors: IoError naming the program and the reason when it cannot be started.
pid_t spawn_rank(const RankPlan& plan, const SpawnContext& context);

/// A channel for a rank's output that looks like the terminal `like_fd`, narrower by `margin_columns`: programs show
/// their progress bars there, and `read` gets the bytes unchanged. Errors: IoError.
Pipe make_terminal(int like_fd, int margin_columns);

}  // namespace zeropage::launch
