/// \file
/// The pipeline of an update over state on a drive, and each of its parts alone, on one set of pages.
#pragma once

#include <algorithm>
#include <chrono>
#include <numeric>
#include <string>
#include <vector>

#include "zeropage/io/page_cache.h"
#include "zeropage/optim/update.h"

namespace zeropage::bench {

class Pipeline {
 public:
  static constexpr std::int64_t kPageNumel = 1 << 20;

  Pipeline(io::StoreOptions options, int pages)
      : order_(static_cast<std::size_t>(pages)),
        gradient_(kPageNumel, 1e-3F),
        cache_("state of the bench", std::move(options),
               std::vector<io::ExtentSpec>(order_.size(), {"a page", 3 * 4 * kPageNumel}), std::make_shared<Ledger>()) {
    std::iota(order_.begin(), order_.end(), 0);
    for (int slot = 0; slot < 2; ++slot) pass(/*reads=*/false, /*updates=*/false, /*writes=*/true);
  }

  /// Seconds of one pass over all pages.
  double pass(bool reads, bool updates, bool writes) {
    const auto began = std::chrono::steady_clock::now();
    cache_.begin_pass(reads ? order_ : std::vector<int>{});
    for (const int page : order_) {
      const bool moves = reads || writes;
      float* state = still_.data();
      if (moves) {
        const auto bytes = cache_.acquire(page, reads ? io::Fill::kRead : io::Fill::kZeros);
        state = reinterpret_cast<float*>(bytes.data());
      }
      if (updates) update(state);
      if (moves) cache_.release(page, writes);
    }
    cache_.end_pass();
    cache_.commit();
    std::ranges::reverse(order_);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  }

 private:
  void update(float* state) {
    const optim::Arrays arrays{.master = state,
                               .states = {state + kPageNumel, state + 2 * kPageNumel},
                               .gradient = gradient_.data(),
                               .parameter = parameter_.data(),
                               .parameter_dtype = DType::kBFloat16};
    optim::update(arrays, kPageNumel, {});
  }

  std::vector<int> order_;
  std::vector<float> gradient_;
  std::vector<std::uint16_t> parameter_ = std::vector<std::uint16_t>(kPageNumel);
  std::vector<float> still_ = std::vector<float>(3 * kPageNumel);  // state that is always in memory
  io::PageCache cache_;
};

}  // namespace zeropage::bench
