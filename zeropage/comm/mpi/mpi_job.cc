#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <random>

#include "zeropage/base/error.h"
#include "zeropage/comm/mpi/mpi_communicator.h"
#include "zeropage/comm/shm/shared_memory_communicator.h"

// 1. All ranks meet in a communicator over MPI.
// 2. They compare the requirements of shared memory: the same running kernel, process ids, /dev/shm and user.
// 3. If all are equal, rank 0 names a shared memory, and all join it; the communicator over MPI is closed.

namespace zeropage::comm {
namespace {

/// Equal for ranks that can share memory.
struct MemoryDomain {
  char boot_id[40] = {};
  std::uint64_t process_ids = 0;
  std::uint64_t memory_device = 0;
  std::uint64_t user = 0;
};

MemoryDomain memory_domain_of_this_process() {
  MemoryDomain domain;
  std::ifstream("/proc/sys/kernel/random/boot_id").read(domain.boot_id, sizeof(domain.boot_id) - 1);
  struct stat status {};
  if (stat("/proc/self/ns/pid", &status) == 0) domain.process_ids = status.st_ino;
  if (stat("/dev/shm", &status) == 0) domain.memory_device = status.st_dev;
  domain.user = geteuid();
  return domain;
}

std::string make_job_name() {
  std::random_device random;
  return fmt::format("zp-{}-mpi-{:08x}{:08x}", geteuid(), random(), random());
}

}  // namespace

std::unique_ptr<Communicator> join_mpi_job(const std::shared_ptr<MpiRuntime>& runtime,
                                           std::chrono::milliseconds timeout) {
  auto over_mpi = make_mpi_communicator(runtime, timeout);
  const MemoryDomain mine = memory_domain_of_this_process();
  const std::string places =
      all_gather_small(*over_mpi, {reinterpret_cast<const char*>(&mine), sizeof(mine)}, {"places of the ranks"});
  for (int r = 0; r < over_mpi->size(); ++r) {
    if (std::memcmp(places.data() + static_cast<std::size_t>(r) * sizeof(MemoryDomain), &mine, sizeof(MemoryDomain)) !=
        0) {
      return over_mpi;
    }
  }
  std::string name = make_job_name();
  name = all_gather_small(*over_mpi, name, {"name of the job"}).substr(0, name.size());
  return join_shared_memory(name, over_mpi->rank(), over_mpi->size(), timeout);
}

}  // namespace zeropage::comm
