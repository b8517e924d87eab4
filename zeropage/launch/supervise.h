/// \file
/// Watching over the ranks of a job, wherever they run.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "zeropage/launch/job_plan.h"
#include "zeropage/launch/rank_host.h"

namespace zeropage::launch {

struct SuperviseOptions {
  int control_fd = -1;      ///< from the front process: one byte per signal; its end means that the front is dead
  sigset_t rank_mask = {};  ///< signal mask of the ranks
  pid_t rank_group = 0;     ///< process group of the ranks
  bool quiet = false;
  std::string log_dir;  ///< a file per rank goes here; empty: none
};

/// In a control byte: the ranks have had this signal already (a key pressed on the terminal reaches all of them).
constexpr unsigned char kAlreadyDelivered = 0x80;

/// Some hosts' ranks.
struct HostJob {
  std::unique_ptr<RankHost> host;  ///< null: this one
  JobPlan plan;
};

/// Starts the ranks, passes their output on and returns the job's exit code when nothing of it is left running: 0, that
/// of the rank that failed first (128 + N if signal N killed it, kRetryExitCode if that was SIGKILL), kRetryExitCode if
/// a host was lost first, or 128 + the signal that the user sent (0: after SIGTERM all ranks ended with 0). The caller
/// has SIGCHLD blocked and is the adopter of orphans. Errors: IoError when a log file cannot be made.
int supervise(std::vector<HostJob> jobs, const SuperviseOptions& options);

}  // namespace zeropage::launch
