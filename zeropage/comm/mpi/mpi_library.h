/// \file
/// The door of the library that talks to MPI. It is loaded when ranks need it, so that programs run where there is no
/// MPI. Programs that start MPI themselves link `zeropage::mpi` and use mpi_communicator.h instead.
#pragma once

#include <chrono>
#include <memory>

#include "zeropage/comm/communicator.h"
#include "zeropage/comm/world.h"

namespace zeropage::comm {

inline constexpr const char* kMpiLibrary = "libzeropage_mpi.so";
inline constexpr const char* kJoinMpiJob = "zeropage_join_mpi_job";

struct MpiJob {
  World world;  ///< what the environment says of this rank; MPI must say the same
  std::chrono::milliseconds timeout{0};
  bool share_memory = true;  ///< where all ranks can: see join_mpi_job
};

/// Joins all ranks of MPI_COMM_WORLD, and starts MPI when that is the first time. Collective; once per communicator.
/// Errors: ConfigError (MPI did not start these ranks), and those of MpiRuntime::start and join_mpi_job.
using JoinMpiJob = void(const MpiJob& job, std::shared_ptr<Communicator>& joined);

}  // namespace zeropage::comm

extern "C" zeropage::comm::JoinMpiJob zeropage_join_mpi_job;
