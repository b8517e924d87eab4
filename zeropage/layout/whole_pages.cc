#include "zeropage/layout/whole_pages.h"

#include <algorithm>

#include "zeropage/layout/layout.h"

namespace zeropage::layout {

std::int64_t page_numel_for_whole_parameters(std::int64_t total_numel, std::int64_t largest_numel, int world_size,
                                             int stage) {
  constexpr std::int64_t kPerRank = 4;
  constexpr std::int64_t kLargestFrame = 50'000'000;
  if (stage == 0 || world_size == 1) return 0;
  std::int64_t numel = std::min(largest_numel, total_numel) * kPerRank * world_size;
  numel = std::min(numel, total_numel / 4);
  if (stage >= 2) numel = std::min(numel, kLargestFrame);
  return numel > default_page_numel(total_numel, /*networked=*/true) ? numel : 0;
}

}  // namespace zeropage::layout
