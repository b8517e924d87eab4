/// \file
/// The ranks of a job on several hosts as a communicator over hosts: shared memory on each host, and gloo between
/// hosts. For CPU ranks; also used by Python.
///
///  1. Ranks exchange through a store whether they form a grid of hosts (host_grid.h).
///  2. The ranks of each host join shared memory.
///  3. The ranks of each column make their process groups, through the store.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "zeropage/comm/aborts.h"
#include "zeropage/comm/communicator.h"
#include "zeropage/comm/hosts/host_grid.h"
#include "zeropage/comm/world.h"

// torch's headers last, because they define macros.
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace zeropage::comm {

/// The grid of hosts that the ranks form; with one row if ranks of a host could not save any traffic together. If hosts
/// have several ranks but form no grid, rank 0 logs that. Collective; nothing else may write into `store`.
/// Errors: those of the store.
HostGrid agree_on_hosts(c10d::Store& store, const World& world);

struct HostsGroups {
  std::unique_ptr<Communicator> communicator;
  c10::intrusive_ptr<c10d::ProcessGroup> data;  ///< of this rank's column
  c10::intrusive_ptr<c10d::ProcessGroup> control;
};

/// Joins the ranks of `world`, which form `grid`. Collective; nothing else may write into `store`. `name`: of shared
/// memory that only this job uses on its hosts, as for join_shared_memory. `deterministic_reduction`: as for
/// make_hosts_communicator. `aborts`: of the communicators that abort with this one; null: none does. Errors: those of
/// join_shared_memory, with the setting to change, and of gloo.
HostsGroups join_hosts(const HostGrid& grid, const World& world, const c10::intrusive_ptr<c10d::Store>& store,
                       const std::string& name, bool deterministic_reduction, std::chrono::milliseconds timeout,
                       std::shared_ptr<Aborts> aborts);

/// Joins CPU ranks in groups of `count` on each host (hosts/group_communicator.h): shared memory in a group, and gloo
/// between the replicas of a shard. Collective; the rest as for join_hosts. Errors: also those of check_groups.
HostsGroups join_groups(const World& world, std::int64_t count, const c10::intrusive_ptr<c10d::Store>& store,
                        const std::string& name, bool deterministic_reduction, std::chrono::milliseconds timeout,
                        std::shared_ptr<Aborts> aborts);

/// A process group over gloo whose ranks find each other by `name` in `store`.
c10::intrusive_ptr<c10d::ProcessGroup> make_gloo_group(const c10::intrusive_ptr<c10d::Store>& store,
                                                       const std::string& name, int rank, int size,
                                                       std::chrono::milliseconds timeout);

}  // namespace zeropage::comm
