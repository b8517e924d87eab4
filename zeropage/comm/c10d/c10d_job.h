/// \file
/// The ranks of a job on any hosts as a communicator over torch's process groups, without Python: for C++ programs
/// between hosts and between GPUs.
///
///  1. All ranks connect to the job's store (c10d_store.h).
///  2. Through that store they find each other: a group over gloo for host values, and one that moves the data: over
///     NCCL for ranks on a GPU, otherwise over gloo.
#pragma once

#include <c10/core/Device.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "zeropage/comm/communicator.h"
#include "zeropage/comm/hosts/host_grid.h"
#include "zeropage/comm/world.h"

namespace zeropage::comm {

/// Joins the ranks of `world`. Collective; `number` is the same on all ranks and different for each communicator.
/// `aborts`: the same number for communicators that abort together, and for no others. `token`: as for job_store.
/// `device`, `deterministic_reduction`, `timeout`: as for make_c10d_communicator. Gloo uses the interfaces in
/// GLOO_SOCKET_IFNAME, by default that of the host's name.
/// Errors: TimeoutError (a rank is missing), PeerError, ConfigError (a GPU, and this zeropage was built without NCCL's
/// headers).
std::unique_ptr<Communicator> join_c10d_job(const World& world, const Meeting& meeting, const std::string& token,
                                            std::int64_t number, std::int64_t aborts, c10::Device device,
                                            bool deterministic_reduction, std::chrono::milliseconds timeout);

/// The grid of hosts of the ranks of `world`, see agree_on_hosts. Collective; `number` as for join_c10d_job, and not
/// used for anything else.
HostGrid hosts_of_c10d_job(const World& world, const Meeting& meeting, const std::string& token, std::int64_t number,
                           std::chrono::milliseconds timeout);

/// Like join_c10d_job, for CPU ranks that form `grid`: see join_hosts. `name`: of their shared memory.
std::unique_ptr<Communicator> join_c10d_hosts(const HostGrid& grid, const World& world, const Meeting& meeting,
                                              const std::string& token, std::int64_t number, std::int64_t aborts,
                                              const std::string& name, bool deterministic_reduction,
                                              std::chrono::milliseconds timeout);

/// The same for CPU ranks in groups of `count`: see join_groups.
std::unique_ptr<Communicator> join_c10d_groups(const World& world, std::int64_t count, const Meeting& meeting,
                                               const std::string& token, std::int64_t number, std::int64_t aborts,
                                               const std::string& name, bool deterministic_reduction,
                                               std::chrono::milliseconds timeout);

/// Joins ranks on `device` in groups of `count`, which divides their number: see make_c10d_groups. Groups may reach
/// over several hosts. The rest as for join_c10d_job.
std::unique_ptr<Communicator> join_c10d_device_groups(const World& world, std::int64_t count, const Meeting& meeting,
                                                      const std::string& token, std::int64_t number,
                                                      std::int64_t aborts, c10::Device device,
                                                      bool deterministic_reduction, std::chrono::milliseconds timeout);

}  // namespace zeropage::comm
