/// \file
/// The ranks of a job, from the environment variables of the launcher. Also used by Python.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace zeropage::comm {

/// This rank's place among the ranks of the job.
struct World {
  int rank = 0;
  int local_rank = 0;  ///< among the ranks of this host
  int size = 1;
  int local_size = 1;  ///< ranks of this host

  bool operator==(const World&) const = default;
};

/// The value of an environment variable, or null: std::getenv, or a map in tests.
using Environment = std::function<const char*(const char*)>;

/// Reads the variables of the first launcher that has set any: `zeropage` and `torchrun` (RANK, LOCAL_RANK, WORLD_SIZE,
/// LOCAL_WORLD_SIZE or LOCAL_SIZE; with more than one rank also MASTER_ADDR and MASTER_PORT are required), Open MPI's
/// mpirun (OMPI_COMM_WORLD_*), MPICH's and Intel's (PMI_*, MPI_LOCAL*), srun (SLURM_PROCID, SLURM_STEP_*). None: one
/// rank.
/// Errors: ConfigError when some are missing, are not integers, or contradict each other.
World world_from_environment(const Environment& environment);

/// This rank according to an MPI launcher or Slurm.
struct ScheduledWorld {
  std::string starter;  ///< "mpirun" or "srun", for messages
  World world;
  std::optional<int> node{};  ///< number of this host; absent: not provided by the launcher
};

/// Reads only the variables of Open MPI, MPICH, Intel MPI or a Slurm step; nothing if there are none, for example in
/// the shell of an allocation.
/// Errors: those of world_from_environment.
std::optional<ScheduledWorld> scheduled_world(const Environment& environment);

/// The number for host `node` in a list of Slurm's such as "4(x2),3", which is 4, 4, 3. Nothing if it is not in the
/// list.
std::optional<int> tasks_of_node(std::string_view list, int node);

/// The rendezvous of ranks on several hosts.
struct Meeting {
  std::string address;
  std::uint16_t port = 0;
  bool is_open = false;  ///< torchrun's agent listens there; otherwise rank 0 does
  std::string prefix{};  ///< the prefix of this attempt's entries in the store

  bool operator==(const Meeting&) const = default;
};

/// Reads MASTER_ADDR and MASTER_PORT, and torchrun's variables about its store. If mpirun or srun has started the ranks
/// of `world` on one host and neither of the two is set, their port is derived from the name of the job. Errors:
/// ConfigError when one of them is missing (Python and C++ programs need both on several hosts) or the port is invalid.
Meeting meeting_from_environment(const Environment& environment, const World& world);

/// The launcher's token, 32 hexadecimal digits; empty if another program has started the ranks. Errors: ConfigError for
/// other values.
std::string token_from_environment(const Environment& environment);

/// A name for shared memory that the ranks of this job share and no other job of this host has: from the launcher's
/// token, or from other variables that identify the job. `number`: of the communicator in the job, the same on all
/// ranks.
std::string segment_name(const Environment& environment, std::int64_t number);

}  // namespace zeropage::comm
