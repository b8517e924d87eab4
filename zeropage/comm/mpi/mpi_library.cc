#include "zeropage/comm/mpi/mpi_library.h"

#include <fmt/format.h>

#include "zeropage/base/error.h"
#include "zeropage/comm/mpi/mpi_communicator.h"

void zeropage_join_mpi_job(const zeropage::comm::MpiJob& job, std::shared_ptr<zeropage::comm::Communicator>& joined) {
  using namespace zeropage::comm;
  // MPI starts once in a process and ends with it, independent of engines.
  static const std::shared_ptr<MpiRuntime> runtime = MpiRuntime::start();
  joined = job.share_memory ? join_mpi_job(runtime, job.timeout) : make_mpi_communicator(runtime, job.timeout);
  if (joined->rank() != job.world.rank || joined->size() != job.world.size) {
    throw zeropage::ConfigError(fmt::format(
        "the environment says rank {} of {}, MPI says rank {} of {}: ranks that talk through MPI are started by "
        "its mpirun, or by srun",
        job.world.rank, job.world.size, joined->rank(), joined->size()));
  }
}
