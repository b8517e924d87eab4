/// \file
/// The allocation of a cluster's job manager or an MPI, from its environment variables.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "zeropage/comm/world.h"
#include "zeropage/launch/hostfile.h"

namespace zeropage::launch {

using comm::Environment;

/// One rank of a job that mpirun or srun has started: this process.
struct Task {
  std::string starter;  ///< "mpirun" or "srun", for messages
  int rank = 0;
  int size = 1;
  int local_rank = 0;
  int local_size = 1;
  int node = 0;
  int num_nodes = 1;
  std::string first_host = {};  ///< the host of rank 0; empty: unknown
};

/// The task that this process is: variables of OpenMPI (OMPI_*), MPICH and Intel MPI (PMI_*, MPI_LOCAL*), or a Slurm
/// step (SLURM_*) with more than one task. nullopt otherwise. Errors: ConfigError when they contradict each other.
std::optional<Task> task_of(const Environment& environment);

/// The hosts of the Slurm allocation around this process, with one slot per GPU, or per task of a node if no GPUs are
/// known, or one. Empty without an allocation. Errors: ConfigError for a list outside its grammar.
std::vector<HostSlots> slurm_hosts(const Environment& environment);

/// Slurm's short form of host names, such as "gpu[01-03,7],login". Errors: ConfigError.
std::vector<std::string> expand_node_list(const std::string& list);

}  // namespace zeropage::launch
