/// \file
/// From the user's wishes and the host's offers to what is started: pure arithmetic, nothing is run here.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "zeropage/launch/options.h"

namespace zeropage::launch {

/// What `plan_job` needs to know of the host.
struct Host {
  std::vector<std::string> gpus;  ///< see visible_gpus
  std::vector<int> cores;         ///< cores this process may use
  std::vector<int> units;         ///< the same without hyperthreads: see one_per_unit
  bool omp_threads_set = false;   ///< the user's environment has OMP_NUM_THREADS
  std::string python;             ///< empty with --no_python
  int port = 0;
  std::string token;
};

/// One process to start.
struct RankPlan {
  std::vector<std::string> argv;
  std::vector<std::pair<std::string, std::string>> env;  ///< in addition to, or instead of, what is inherited
  std::vector<int> cores;                                ///< to bind to; empty: none
};

struct JobPlan {
  std::vector<RankPlan> ranks;
  std::vector<std::string> notices;  ///< lines for the user
};

/// Number of ranks: as asked, else one per GPU, else 1. Errors: ConfigError when more GPUs are asked for than there are.
int count_ranks(const Options& options, const Host& host);

/// The processes of the job. Each gets
/// MASTER_ADDR MASTER_PORT WORLD_SIZE RANK LOCAL_RANK LOCAL_SIZE LOCAL_WORLD_SIZE CROSS_RANK CROSS_SIZE,
/// CUDA_VISIBLE_DEVICES (all GPUs of the job; LOCAL_RANK picks), ZEROPAGE_JOB_TOKEN, and OMP_NUM_THREADS: its cores when
/// bound, otherwise, unless the user has set it, its share of the host's when there are several ranks.
/// Errors: ConfigError (too few GPUs or cores, a core that may not be used).
JobPlan plan_job(const Options& options, const Host& host);

}  // namespace zeropage::launch
