/// \file
/// A reduce_scatter over hosts whose sums are formed in the order of the ranks, as stages:
///
///  1. The ranks of a host send each other their terms: rank j of a host gets those of column j's shards, a block for
///     each host's shard.
///  2. In the column every host sends the owners the terms that they add themselves. Where a sum goes from host to
///     host, host 0 adds its terms and sends the sum to host 1, which adds its terms, and so on: one exchange per hop,
///     the first together with the terms.
///  3. The last host sends sums that end there to their owners.
///  4. The owner adds what is left.
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
/// and on top what is sent and received between hosts.
void add_ordered_reduction(HostsOperation& operation, const HostGrid& grid, int host, const ReductionCall& call);

/// The same with sums over the ranks of each host first, and then over hosts.
void add_reduction_by_hosts(HostsOperation& operation, const HostGrid& grid, const ReductionCall& call);

}  // namespace zeropage::comm
