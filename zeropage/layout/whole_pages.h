/// \file
/// Pages of parameters that an optimizer needs whole (Muon, and others that use shapes or norms). Each parameter is
/// within the shard of one rank, its owner. The owner receives its gradient and updates it like any shard:
///   1. The parameters of a page are assigned to ranks, the largest first, each to the rank with the fewest elements.
///   2. All shards have the size of the fullest one. The rest of the others is padding.
///   3. A page ends where the padding is smallest, at half its greatest length or later.
///   4. A page with too much padding is divided without regard to parameters. A parameter on the border of two shards
///      is then sent to its owner within each update (session/whole_parameters.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "zeropage/layout/layout.h"

namespace zeropage::layout {

/// A page in which no parameter is divided.
struct Shards {
  std::int64_t shard_numel = 0;
  std::vector<std::int64_t> offsets;  ///< the offset of each parameter in the page
};

/// `numels`: of the page's parameters. nullopt: more than an eighth of the page would be padding. Cost: n log n.
std::optional<Shards> pack_into_shards(const std::vector<std::int64_t>& numels, const LayoutOptions& options);

/// The number of parameters of a page with the smallest padding. `numels`: of the parameters that fit into it, at least
/// one. Cost: n^2 log n, for at most 256 parameters; a page of more parameters has little padding and takes all.
std::size_t best_page_length(const std::vector<std::int64_t>& numels, const LayoutOptions& options);

/// Elements of a page that has little padding: 4 `largest_numel` (of a parameter) for each rank, at most a quarter of
/// `total_numel`, but 2 for each rank if there are that many. `frames`: whole pages of such parameters exist
/// temporarily (stages 2 and 3); then at most 5e7, or a 16th of `total_numel`. 0: the default page is large enough.
std::int64_t page_numel_for_whole_parameters(std::int64_t total_numel, std::int64_t largest_numel, int world_size,
                                             bool frames);

}  // namespace zeropage::layout
