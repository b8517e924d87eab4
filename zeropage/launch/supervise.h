/// \file
/// Supervises the ranks of a job on all hosts.
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
  std::string log_dir;  ///< folder for a file per rank; empty: no files
};

/// A bit of a control byte: the ranks have already received this signal (a key on the terminal reaches all of them).
constexpr unsigned char kAlreadyDelivered = 0x80;

/// A host and its ranks.
struct HostJob {
  std::unique_ptr<RankHost> host;  ///< null: this one
  JobPlan plan;
};

/// Starts the ranks, passes their output on and returns the job's exit code after all its processes have ended. The
/// code is 0; or the code of the rank that failed first (128 + N if signal N killed it, kRetryExitCode if N was
/// SIGKILL); or kRetryExitCode if a host was lost first; or 128 + the signal of the user (0 if all ranks ended with 0
/// after SIGTERM). The caller must have blocked SIGCHLD and must adopt orphans. Errors: IoError when a log file cannot
/// be made.
int supervise(std::vector<HostJob> jobs, const SuperviseOptions& options);

}  // namespace zeropage::launch
