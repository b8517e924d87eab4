/// \file
/// The remote end of an ssh connection: `zeropage agent` starts and watches the ranks of its host for a launcher on
/// another host.
///
/// 1. It sends a greeting, receives kAsk, and reports the devices of the host and any problems.
/// 2. kStart starts ranks. Their output and their exit codes are sent to the launcher at once.
/// 3. When all ranks and all processes that they started have ended, it sends kDone and ends.
/// 4. When its stdin ends, no heartbeat arrives for kBeatPatience, or a signal or kKill arrives, it kills everything
///    that it started.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "zeropage/launch/job_plan.h"

namespace zeropage::launch {

/// The launcher's question before the start of a job.
struct Question {
  std::string folder;  ///< the working directory
  std::string script;
  std::string python;  ///< the Python to use if it exists; empty: the one of that host's environment
  bool module = false;
  bool no_python = false;
  bool all_gpus = false;  ///< use all GPUs, and ignore CUDA_VISIBLE_DEVICES there
  int port = 0;           ///< the port to claim; 0: none
};

/// The answer.
struct HostReport {
  std::string version;  ///< the version of zeropage
  std::string torch;    ///< the version of torch; empty: not asked for (--no_python)
  std::string address;  ///< the address at which other hosts reach this one
  std::string network;  ///< the interface that has it
  Host host;            ///< `port`: the claimed one
  std::vector<std::string> errors;
};

std::string encode(const Question& question);
Question decode_question(std::string_view bytes);
std::string encode(const HostReport& report);
HostReport decode_report(std::string_view bytes);
std::string encode(const std::vector<RankPlan>& ranks);
std::vector<RankPlan> decode_ranks(std::string_view bytes);

/// Runs the agent on stdin and stdout. `argv0`: as in launch. Returns its exit code after all processes of the job on
/// this host have ended.
int run_agent(const std::string& argv0);

}  // namespace zeropage::launch
