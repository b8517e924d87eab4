#include "zeropage/layout/whole_pages.h"

#include <algorithm>
#include <numeric>

#include "zeropage/base/checked.h"

namespace zeropage::layout {
namespace {

constexpr std::size_t kTriedLengths = 256;

/// The owning rank of each parameter.
std::vector<int> owners_of(const std::vector<std::int64_t>& numels, int world_size) {
  std::vector<std::size_t> order(numels.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, std::greater{}, [&](std::size_t i) { return numels[i]; });
  std::vector<std::int64_t> owned(world_size, 0);
  std::vector<int> owners(numels.size());
  for (const std::size_t i : order) {
    const auto least = std::ranges::min_element(owned);
    owners[i] = static_cast<int>(least - owned.begin());
    *least += numels[i];
  }
  return owners;
}

std::int64_t fullest(const std::vector<std::int64_t>& numels, int world_size) {
  const std::vector<int> owners = owners_of(numels, world_size);
  std::vector<std::int64_t> owned(world_size, 0);
  for (std::size_t i = 0; i < numels.size(); ++i) owned[owners[i]] += numels[i];
  return std::ranges::max(owned);
}

}  // namespace

std::optional<Shards> pack_into_shards(const std::vector<std::int64_t>& numels, const LayoutOptions& options) {
  constexpr std::int64_t kWorthOfPadding = 8;
  const std::vector<int> owners = owners_of(numels, options.world_size);
  Shards shards;
  std::vector<std::int64_t> ends(options.world_size, 0);
  std::int64_t total_numel = 0;
  for (std::size_t i = 0; i < numels.size(); ++i) {
    std::int64_t& end = ends[owners[i]];
    shards.offsets.push_back(checked_round_up(end, options.parameter_alignment_numel, "offset in a shard"));
    end = checked_add(shards.offsets.back(), numels[i], "end in a shard");
    total_numel = checked_add(total_numel, numels[i], "size of a page");
  }
  const std::int64_t largest = std::max<std::int64_t>(1, std::ranges::max(ends));
  shards.shard_numel = checked_round_up(largest, options.shard_alignment_numel, "size of a shard");
  const std::int64_t even = std::max<std::int64_t>(1, ceil_div(total_numel, options.world_size));
  if (shards.shard_numel > checked_round_up(even + even / kWorthOfPadding, options.shard_alignment_numel, "a shard")) {
    return std::nullopt;
  }
  for (std::size_t i = 0; i < numels.size(); ++i) shards.offsets[i] += owners[i] * shards.shard_numel;
  return shards;
}

std::size_t best_page_length(const std::vector<std::int64_t>& numels, const LayoutOptions& options) {
  if (options.world_size == 1 || numels.size() > kTriedLengths) return numels.size();
  const std::int64_t total = std::accumulate(numels.begin(), numels.end(), std::int64_t{0});
  std::size_t best = numels.size();
  double least = 0;
  std::int64_t sum = total;
  std::vector<std::int64_t> taken = numels;
  for (std::size_t length = numels.size(); length > 0 && sum * 2 >= total; --length) {
    const double padding = static_cast<double>(fullest(taken, options.world_size)) / std::max<std::int64_t>(1, sum);
    if (length == numels.size() || padding < least) {
      best = length;
      least = padding;
    }
    sum -= taken.back();
    taken.pop_back();
  }
  return best;
}

std::int64_t page_numel_for_whole_parameters(std::int64_t total_numel, std::int64_t largest_numel, int world_size,
                                             bool frames) {
  constexpr std::int64_t kPerRank = 4;
  constexpr std::int64_t kLargestFrame = 50'000'000;
  if (world_size == 1) return 0;
  const std::int64_t for_each_rank = std::min(largest_numel, total_numel) * world_size;
  const std::int64_t least = std::min(total_numel, 2 * for_each_rank);
  std::int64_t numel = std::min(kPerRank * for_each_rank, std::max(total_numel / 4, least));
  if (frames) numel = std::min(numel, std::max(kLargestFrame, total_numel / 16));
  return numel > default_page_numel(total_numel, /*networked=*/true) ? numel : 0;
}

}  // namespace zeropage::layout
