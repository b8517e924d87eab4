/// \file
/// The far end of an ssh: `zeropage agent` looks after the ranks of its host for a launcher elsewhere.
///
/// 1. It greets, is asked (kAsk) and reports what the host offers and what is wrong with it.
/// 2. kStart starts ranks. Their output and their ends go to the launcher, as they come.
/// 3. When all have ended, and what they left behind too, it says kDone and ends.
/// 4. When its stdin ends, no beat comes for kBeatPatience, or a signal or kKill arrives, it kills everything it
///    started.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "zeropage/launch/job_plan.h"

namespace zeropage::launch {

/// What the launcher wants to know and check before it starts.
struct Question {
  std::string folder;  ///< to work in
  std::string script;
  std::string python;  ///< the Python to use if it is there; empty: the one of the environment there
  bool module = false;
  bool no_python = false;
  bool all_gpus = false;  ///< whatever CUDA_VISIBLE_DEVICES says there
  int port = 0;           ///< to be claimed; 0: none
};

/// The answer.
struct HostReport {
  std::string version;  ///< of zeropage
  std::string torch;    ///< its version; empty: not asked for (--no_python)
  std::string address;  ///< at which other hosts reach this one
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

/// Runs the agent on stdin and stdout. `argv0`: as in launch. Returns its exit code when nothing of the job is left
/// here.
int run_agent(const std::string& argv0);

}  // namespace zeropage::launch
