/// \file
/// A reduce_scatter over groups of ranks, after which every group has all sums (group_communicator.h), as stages.
///
/// In the order of the ranks:
///  1. The ranks of a group exchange their terms: each gets those of its shard.
///  2. The first group adds its terms and sends the sum to the second one, which adds its terms to it, and so on: one
///     message per group, among the replicas of a shard.
///  3. The last group has the sum, and broadcasts it to the other replicas.
///  4. Each replica rounds the sum to the type of its result, or adds it there.
/// Sent between groups: 2 (groups - 1) fp32 sums of each shard, as many as an all_reduce needs. The messages of step 2
/// wait for each other.
///
/// By groups (`deterministic_reduction` false): each group reduces its terms, then the replicas all_reduce the sums.
#pragma once

#include <memory>

#include "zeropage/comm/hosts/group_device.h"
#include "zeropage/comm/hosts/hosts_queue.h"
#include "zeropage/comm/hosts/hosts_reduction.h"

namespace zeropage::comm {

using SumMemoryPtr = std::shared_ptr<const SumMemory>;

/// Appends the stages of `call`, whose shard_numel is that of a group's shard, for a rank of group `group` of `grid`, a
/// row per group. `memory`: the kind of memory in which the buffers of `call` are. Memory while it runs: the size of
/// `whole`, and two fp32 shards. Errors of the stages: as HostsQueue::poll.
void add_replicated_reduction(HostsOperation& operation, const HostGrid& grid, int group, const ReductionCall& call,
                              const SumMemoryPtr& memory);

/// The same with sums over each group first. Memory while it runs: an fp32 shard.
void add_replicated_reduction_by_groups(HostsOperation& operation, const ReductionCall& call,
                                        const SumMemoryPtr& memory);

}  // namespace zeropage::comm
