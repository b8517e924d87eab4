/// \file
/// Computes the processes to start from the user's options and the host's resources. Nothing is started here.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "zeropage/launch/options.h"

namespace zeropage::launch {

/// The facts about a host that planning needs.
struct Host {
  std::vector<std::string> gpus;  ///< see visible_gpus
  std::vector<int> cores;         ///< cores that a process there may use
  std::vector<int> units;         ///< the same without hyperthreads: see one_per_unit
  bool omp_threads_set = false;   ///< the environment there has OMP_NUM_THREADS
  std::string python;             ///< empty with --no_python
  int port = 0;
  std::string token;  ///< identifies the job; empty: mpirun or srun has started the ranks without a token
};

/// A host's part of a job.
struct HostPart {
  std::string name;        ///< empty: the host the launcher is on, and nothing to tell apart
  std::vector<int> slots;  ///< one per rank: the number of its GPU, if there are GPUs
  int first_rank = 0;
  int first_local_rank = 0;  ///< not 0 if another program starts one launcher per rank
  int local_size = 0;
  int world_size = 0;
  int node = 0;
  int num_nodes = 1;
  std::string master_addr;
  int master_port = 0;
};

/// One process to start.
struct RankPlan {
  int rank = 0;
  std::string host;  ///< HostPart::name
  std::vector<std::string> argv;
  std::vector<std::pair<std::string, std::string>>
      env;                 ///< added to the inherited environment; replaces variables of the same name
  std::vector<int> cores;  ///< to bind to; empty: none
};

struct JobPlan {
  std::vector<RankPlan> ranks;
  std::vector<std::string> notices;  ///< lines for the user
};

/// Number of ranks: as requested; otherwise one per GPU; otherwise 1. Errors: ConfigError when more GPUs are asked for
/// than there are.
int count_ranks(const LaunchOptions& options, const Host& host);

/// The whole job as ranks of this host alone: slots from 0, meeting at 127.0.0.1 unless --master_addr is given.
HostPart place_alone(const LaunchOptions& options, const Host& host);

/// The program and arguments of a rank: [python -u [-m]] script [--local_rank=N] arguments.
std::vector<std::string> rank_argv(const LaunchOptions& options, const std::string& python, int local_rank);

/// The processes of a place. Each gets
/// MASTER_ADDR MASTER_PORT WORLD_SIZE RANK LOCAL_RANK LOCAL_SIZE LOCAL_WORLD_SIZE CROSS_RANK CROSS_SIZE,
/// CUDA_VISIBLE_DEVICES (all GPUs of the place; LOCAL_RANK selects one), ZEROPAGE_JOB_TOKEN, and OMP_NUM_THREADS: its
/// cores when bound, otherwise, unless the user has set it, its share of the host's when there are several ranks.
/// Errors: ConfigError (too few GPUs or cores, a core that may not be used).
JobPlan plan_job(const LaunchOptions& options, const Host& host, const HostPart& place);

}  // namespace zeropage::launch
