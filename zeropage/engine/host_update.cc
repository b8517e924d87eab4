#include "zeropage/engine/host_update.h"

#include "zeropage/memory/torch_config.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "zeropage/base/checked.h"

namespace zeropage::engine {
namespace {

// Elements per task: enough work for the cost of starting a task, far below a page.
constexpr std::int64_t kGrainNumel = 1 << 16;

// fp32 elements of a cache line.
constexpr std::int64_t kLineNumel = 16;

}  // namespace

optim::Arrays UpdateSegment::of(const optim::Arrays& range) const {
  auto arrays = range.from_block(offset, block);
  if (gradient != nullptr) arrays.gradient = gradient;
  return arrays;
}

void update_on_host(const optim::Arrays& range, const std::vector<UpdateSegment>& segments) {
  if (segments.empty()) return;
  const std::int64_t first_line = segments.front().offset / kLineNumel;
  const std::int64_t last_line = ceil_div(segments.back().offset + segments.back().numel, kLineNumel);
  const std::int64_t grid = range.state_dtype == config::StateDtype::kInt8 ? optim::kPackedBlockNumel : 1;
  at::parallel_for(first_line, last_line, kGrainNumel / kLineNumel, [&](std::int64_t from_line, std::int64_t to_line) {
    for (const UpdateSegment& segment : segments) {
      const auto on_grid = [&](std::int64_t line) {
        const std::int64_t from_start = std::max<std::int64_t>(line * kLineNumel - segment.offset, 0);
        return std::min(segment.numel, round_up(from_start, grid));
      };
      const std::int64_t begin = on_grid(from_line);
      const std::int64_t end = on_grid(to_line);
      if (begin >= end) continue;
      optim::update(segment.of(range).from(begin), end - begin, segment.step);
    }
  });
}

}  // namespace zeropage::engine
