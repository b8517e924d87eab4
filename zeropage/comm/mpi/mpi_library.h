/// \file
/// The interface of the library that uses MPI. It is loaded when ranks need it, so that programs also run without MPI.
/// Programs that start MPI themselves link `zeropage::mpi` and use mpi_communicator.h instead.
#pragma once

#include <chrono>
#include <memory>

#include "zeropage/comm/communicator.h"
#include "zeropage/comm/world.h"

namespace zeropage::comm {

inline constexpr const char* kMpiLibrary = "libzeropage_mpi.so";
inline constexpr const char* kJoinMpiJob = "zeropage_join_mpi_job";

struct MpiJob {
  World world;  ///< this rank according to the environment; MPI must agree
  std::chrono::milliseconds timeout{0};
  bool share_memory = true;  ///< if all ranks can: see join_mpi_job
};

/// Joins all ranks of MPI_COMM_WORLD, and starts MPI on the first call. Collective; once per communicator.
/// Errors: ConfigError (MPI did not start these ranks), and those of MpiRuntime::start and join_mpi_job.
using JoinMpiJob = void(const MpiJob& job, std::shared_ptr<Communicator>& joined);

}  // namespace zeropage::comm

extern "C" zeropage::comm::JoinMpiJob zeropage_join_mpi_job;
