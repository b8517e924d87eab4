/// \file
/// Who the ranks of a job are, as the program that started them says in the environment. Python asks here, too.
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

/// Reads the variables of the first launcher that left any: `zeropage` and `torchrun` (RANK, LOCAL_RANK, WORLD_SIZE,
/// LOCAL_WORLD_SIZE or LOCAL_SIZE; of more than one rank also MASTER_ADDR and MASTER_PORT must be there), Open MPI's
/// mpirun (OMPI_COMM_WORLD_*), MPICH's and Intel's (PMI_*, MPI_LOCAL*), srun (SLURM_PROCID, SLURM_STEP_*). None: one
/// rank.
/// Errors: ConfigError when some are missing, are no integers, or contradict each other.
World world_from_environment(const Environment& environment);

/// What an MPI's launcher or Slurm says of this rank.
struct ScheduledWorld {
  std::string starter;  ///< "mpirun" or "srun", for messages
  World world;
  std::optional<int> node{};  ///< number of this host; absent: its starter does not say
};

/// Reads the variables of Open MPI, MPICH, Intel MPI or a Slurm step alone; nothing where there are none, as in the
/// shell of an allocation.
/// Errors: those of world_from_environment.
std::optional<ScheduledWorld> scheduled_world(const Environment& environment);

/// The number for host `node` in a list of Slurm's such as "4(x2),3", which is 4, 4, 3. Nothing when the list does not
/// have it.
std::optional<int> tasks_of_node(std::string_view list, int node);

/// Where ranks of several hosts find each other.
struct Meeting {
  std::string address;
  std::uint16_t port = 0;
  bool is_open = false;  ///< somebody else, torchrun's agent, listens there; otherwise rank 0 does
  std::string prefix{};  ///< of what the ranks of this attempt leave there

  bool operator==(const Meeting&) const = default;
};

/// Reads MASTER_ADDR and MASTER_PORT, and what torchrun says about its store. Where mpirun or srun has started the
/// ranks of `world` on one host and neither of the two is there, their port is made from the name of the job. Errors:
/// ConfigError when one of them is missing (Python and C++ programs need both on several hosts) or the port is none.
Meeting meeting_from_environment(const Environment& environment, const World& world);

/// The launcher's token, 32 hexadecimal digits; empty where another program has started the ranks. Errors: ConfigError
/// for other values.
std::string token_from_environment(const Environment& environment);

/// A name for shared memory that the ranks of this job share and no other job of this host has: of the launcher's
/// token, or of what else tells jobs apart. `number`: which communicator of the job it is; all ranks count alike.
std::string segment_name(const Environment& environment, std::int64_t number);

}  // namespace zeropage::comm
