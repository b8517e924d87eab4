/// \file
/// Ranks started by MPI, on one host or many. For C++ programs: link `zeropage::mpi`.
///
///     auto mpi = comm::MpiRuntime::start();                          // in main; kept until its end
///     auto communicator = comm::join_mpi_job(mpi, timeout);          // once per communicator that is needed
///
/// Then `mpirun -n 2 ./program` works without our launcher.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "zeropage/comm/communicator.h"
#include "zeropage/comm/mpi/mpi_runtime.h"

namespace zeropage::comm {

/// Joins all ranks of MPI_COMM_WORLD with the best transport for their hosts. On one host they share memory, for which
/// MPI only sends the name; on several they communicate through MPI. Collective.
/// Errors: IoError, TimeoutError, PeerError; after an error all ranks should give up.
std::unique_ptr<Communicator> join_mpi_job(const std::shared_ptr<MpiRuntime>& runtime,
                                           std::chrono::milliseconds timeout);

/// Longer messages are split, because MPI counts in int.
constexpr std::int64_t kMpiMessageBytes = std::int64_t{1} << 30;

/// All ranks of MPI_COMM_WORLD through messages of MPI, in a separate MPI communicator. Collective; several are made in
/// the same order on all ranks. Wire bytes are those of communicator.h; a broadcast uses a binomial tree. A reduction
/// receives size - 1 shards into separate memory before it sums them in the order of the ranks.
///
/// While checking is on (as it is at the start) every collective first exchanges its description (one small message per
/// rank). After an error the communicator cannot be used again, and MPI is not finalised: mpirun ends the job.
/// `message_bytes` is for tests. Errors: as join_mpi_job.
std::unique_ptr<Communicator> make_mpi_communicator(std::shared_ptr<MpiRuntime> runtime,
                                                    std::chrono::milliseconds timeout,
                                                    std::int64_t message_bytes = kMpiMessageBytes);

}  // namespace zeropage::comm
