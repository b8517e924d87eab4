#include "zeropage/engine/host_update.h"

#include "zeropage/paging/torch_config.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>

#include "zeropage/optim/norm.h"

namespace zeropage::engine {
namespace {

// Elements per task: far above the cost of handing out a task, far below a page.
constexpr std::int64_t kGrainNumel = 1 << 16;

// fp32 elements of a cache line.
constexpr std::int64_t kLineNumel = 16;

}  // namespace

void update_on_host(const optim::Arrays& range, const std::vector<Segment>& segments) {
  if (segments.empty()) return;
  const std::int64_t first_line = segments.front().offset / kLineNumel;
  const std::int64_t last_line = (segments.back().offset + segments.back().numel + kLineNumel - 1) / kLineNumel;
  const std::int64_t grid = range.state_dtype == config::StateDtype::kInt8 ? optim::kPackedBlockNumel : 1;
  at::parallel_for(first_line, last_line, kGrainNumel / kLineNumel, [&](std::int64_t from_line, std::int64_t to_line) {
    for (const Segment& segment : segments) {
      const auto on_grid = [&](std::int64_t line) {
        const std::int64_t from_start = std::max<std::int64_t>(line * kLineNumel - segment.offset, 0);
        return std::min(segment.numel, (from_start + grid - 1) / grid * grid);
      };
      const std::int64_t begin = on_grid(from_line);
      const std::int64_t end = on_grid(to_line);
      if (begin >= end) continue;
      optim::update(range.from_block(segment.offset, segment.block).from(begin), end - begin, segment.step);
    }
  });
}

double sum_of_squares_on_host(const void* data, DType dtype, std::int64_t numel) {
  constexpr std::int64_t kBlockNumel = optim::SquareSum::kBlockNumel;
  std::vector<double> sums((numel + kBlockNumel - 1) / kBlockNumel);
  at::parallel_for(0, static_cast<std::int64_t>(sums.size()), 1, [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t block = from; block < to; ++block) {
      const std::int64_t begin = block * kBlockNumel;
      sums[block] = optim::sum_of_squares(static_cast<const std::byte*>(data) + begin * element_bytes(dtype), dtype,
                                          std::min(kBlockNumel, numel - begin));
    }
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace zeropage::engine
