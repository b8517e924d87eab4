/// \file
/// Ranks as a grid: a row per host, a column per rank of a host. Also the routes of a sum's terms between hosts.
#pragma once

#include <cstdint>
#include <vector>

#include "zeropage/base/dtype.h"
#include "zeropage/comm/world.h"

namespace zeropage::comm {

/// `hosts` hosts with `local_size` ranks each; the ranks of a host have consecutive numbers.
struct HostGrid {
  int hosts = 1;
  int local_size = 1;

  int size() const { return hosts * local_size; }
  int host_of(int rank) const { return rank / local_size; }
  int local_of(int rank) const { return rank % local_size; }
  int rank_at(int host, int local) const { return host * local_size + local; }

  /// Whether ranks of one host can combine data before they communicate with other hosts.
  bool is_useful() const { return hosts > 1 && local_size > 1; }
};

/// The number of ranks of each host, if this rank's number fits such a grid; otherwise 0. Ranks form a grid if all of
/// them return the same number.
int column_count(const World& world);

/// The route of a shard's terms to its owner, with additions in the order of the ranks.
enum class TermRoute : std::uint8_t {
  kTerms,          ///< every host sends its terms to the owner
  kSumsThenTerms,  ///< host 0 sends its sum to host 1, which adds its terms to it, ..., to the owner's host; hosts after
                   ///< the owner's send their terms
  kSums,           ///< the same to the last host, which sends the sum to the owner
};

/// Bytes between hosts for one element of a shard whose owner is on `owner_host`.
std::int64_t bytes_between_hosts(TermRoute route, const HostGrid& grid, int owner_host, DType dtype);

/// Of the shards of each host, the route that sends the fewest bytes between hosts; of equal ones the one with the
/// fewest messages that wait for each other. dtype: of the terms; partial sums have fp32 (fp64 for fp64).
std::vector<TermRoute> choose_routes(const HostGrid& grid, DType dtype);

/// Whether the sum that host `from` has computed for `owner_host` is sent to host `from` + 1.
bool passes_on(TermRoute route, const HostGrid& grid, int owner_host, int from);

/// Whether host `from` sends its terms to `owner_host`.
bool sends_terms(TermRoute route, int owner_host, int from);

}  // namespace zeropage::comm
