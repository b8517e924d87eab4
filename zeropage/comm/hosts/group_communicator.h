/// \file
/// Hybrid sharding: a model's state is divided over the ranks of a group, and every group has all of it. The ranks of a
/// group have consecutive numbers.
///
/// Two communicators do the work, as in hosts_communicator.h: one of the ranks of this group, and one of the ranks that
/// have the same place in their groups: the replicas of a shard. The communicator that the engine gets has the ranks of
/// this group:
///   rank, size       in the group
///   gathers, broadcast, all_to_all, barrier, small exchanges   among the ranks of the group
///   reduce_scatter   sums over all ranks of the job; every replica of a shard gets the same bits
///   all_reduce       the same
///   job()            all ranks of the job, through the same queue
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "zeropage/comm/aborts.h"
#include "zeropage/comm/communicator.h"
#include "zeropage/comm/hosts/group_device.h"
#include "zeropage/comm/world.h"

namespace zeropage::comm {

/// `inside` has the ranks of this group, `between` those with this rank's place in each group; neither may be used by
/// other code. Buffers are in host memory, or in that of `device` if there is one; there all_reduce needs a multiple of
/// size elements, and job() has only broadcast. Sums are added in the order of the ranks of the job, so they have the
/// bits of every other communicator. `deterministic_reduction` false: a sum is computed in each group first, and then
/// over groups in their order, or in that of the device's transport. Memory while a reduction runs, and messages:
/// replicated_reduction.h. Errors: as make_hosts_communicator. `aborts`: as for make_hosts_communicator.
std::unique_ptr<Communicator> make_group_communicator(std::shared_ptr<Communicator> inside,
                                                      std::shared_ptr<Communicator> between,
                                                      bool deterministic_reduction,
                                                      std::shared_ptr<Aborts> aborts = nullptr,
                                                      std::shared_ptr<GroupDevice> device = nullptr);

/// Checks that `world` permits groups of `count` ranks (zeropage.shard_ranks). Errors: ConfigError unless the ranks of
/// each host have consecutive numbers, and `count` divides their number.
void check_groups(const World& world, std::int64_t count);

/// For communicators of all ranks of `world`, which are on one host. Collective. Memory: about 0.8 MiB per rank.
/// `name`, errors: as for join_shared_memory.
std::shared_ptr<Aborts> join_shared_aborts(const std::string& name, const World& world,
                                           std::chrono::milliseconds timeout);

/// Joins CPU ranks of one host, which share memory, in groups of `count`. Collective. `name`, `aborts`: as for
/// join_shared_memory. Errors: those of check_groups and join_shared_memory.
std::unique_ptr<Communicator> join_shared_groups(const std::string& name, const World& world, std::int64_t count,
                                                 bool deterministic_reduction, std::chrono::milliseconds timeout,
                                                 const std::shared_ptr<Aborts>& aborts);

/// Ranks as threads of one process, in `groups` groups of `count`: the communicator of each rank, in their order. The
/// parts of each abort together.
/// Errors: as make_thread_communicators.
std::vector<std::unique_ptr<Communicator>> make_thread_groups(int groups, int count, std::chrono::milliseconds timeout,
                                                              bool deterministic_reduction = true);

}  // namespace zeropage::comm
