/// \file
/// A reduce_scatter over hosts with sums in the order of the ranks, as stages:
///
///  1. The ranks of a host exchange their terms: rank j of a host gets those of column j's shards, one block for each
///     host's shard.
///  2. In the column every host sends the owners the terms that they add themselves. If a sum is sent from host to
///     host, host 0 adds its terms and sends the sum to host 1, which adds its terms, and so on: one exchange per hop,
///     the first together with the terms.
///  3. The last host sends sums that end there to their owners.
///  4. The owner adds the remaining terms.
///
/// A reduce_scatter that sends sums between hosts as codes (ZeRO++'s quantized gradients):
///
///  1. On each host rank j adds the terms of its host for the shards of column j, in fp32 and in the order of the
///     ranks: a sum for each host's shard.
///  2. It codes these sums, each one by itself, that for its own shard, too: so no sum depends on where its owner is.
///  3. The column exchanges the codes: a rank gets one part from each host.
///  4. The owner decodes them to fp32 and adds them in the order of the hosts.
///
/// The sums then depend on the values, on how many hosts there are, and on how many ranks each has. An element's error
/// is at most that of the codes of each host's sum. Of blocks in 4 bits (optim/block_codes.h) that is half a scale: the
/// block's largest sum / 14, which is at most the sum of the scales of the host's ranks.
#pragma once

#include <memory>
#include <vector>

#include "zeropage/comm/hosts/host_grid.h"
#include "zeropage/comm/hosts/hosts_queue.h"

namespace zeropage::comm {

/// The arguments of Communicator::reduce_scatter.
struct ReductionCall {
  const std::byte* whole = nullptr;
  std::byte* out = nullptr;
  std::int64_t shard_numel = 0;
  DType in_dtype = DType::kFloat32;
  DType out_dtype = DType::kFloat32;
  bool accumulate = false;
  Tag tag;
  OnReduced on_reduced;
};

/// Appends the stages of `call` for the rank at `host`, `local` of `grid`. Memory while it runs: the size of `whole`,
/// plus the bytes sent and received between hosts.
void add_ordered_reduction(HostsOperation& operation, const HostGrid& grid, int host, const ReductionCall& call);

/// The same with sums over the ranks of each host first, and then over hosts.
void add_reduction_by_hosts(HostsOperation& operation, const HostGrid& grid, const ReductionCall& call);

/// The same with the sums of each host in codes. call.in_dtype: not fp64. Memory while it runs: fp32 sums of 1 /
/// local_size of `whole`, and twice their codes.
void add_coded_reduction(HostsOperation& operation, const HostGrid& grid, const SumCodec& codec,
                         const ReductionCall& call);

}  // namespace zeropage::comm
