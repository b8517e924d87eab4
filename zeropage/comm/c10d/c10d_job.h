/// \file
/// The ranks of a job, wherever they run, as a communicator over torch's process groups that needs no Python: what C++
/// programs use between hosts and between GPUs.
///
///  1. All ranks connect to the job's store (c10d_store.h).
///  2. Through that store they find each other: a group over gloo for host values, and one that moves the data: over
///     NCCL for ranks on a GPU, over gloo else.
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

/// Joins the ranks of `world`. Collective; all ranks count `number` alike, a communicator each. `token`: as for
/// job_store. `device`, `deterministic_reduction`, `timeout`: as for make_c10d_communicator. Gloo uses the interfaces
/// that GLOO_SOCKET_IFNAME lists, else the one of the host's name.
/// Errors: TimeoutError (a rank did not come), PeerError, ConfigError (a GPU, and this zeropage was built without
/// NCCL's headers).
std::unique_ptr<Communicator> join_c10d_job(const World& world, const Meeting& meeting, const std::string& token,
                                            std::int64_t number, c10::Device device, bool deterministic_reduction,
                                            std::chrono::milliseconds timeout);

/// The table of hosts that the ranks of `world` are, as agree_on_hosts says. Collective; `number` as for join_c10d_job,
/// and used for nothing else.
HostGrid hosts_of_c10d_job(const World& world, const Meeting& meeting, const std::string& token, std::int64_t number,
                           std::chrono::milliseconds timeout);

/// As join_c10d_job, for CPU ranks that are `grid`: see join_hosts. `name`: of their shared memory.
std::unique_ptr<Communicator> join_c10d_hosts(const HostGrid& grid, const World& world, const Meeting& meeting,
                                              const std::string& token, std::int64_t number, const std::string& name,
                                              bool deterministic_reduction, std::chrono::milliseconds timeout);

}  // namespace zeropage::comm
