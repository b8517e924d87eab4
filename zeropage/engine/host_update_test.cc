#include "zeropage/engine/host_update.h"

#include "zeropage/base/checked.h"
#include "zeropage/memory/torch_config.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace zeropage::engine {
namespace {

using config::StateDtype;

/// A range of parameters of odd lengths, each of which begins at a multiple of 64, as pages have them.
struct Range {
  std::vector<float> master, first, second, gradient;
  std::vector<std::uint16_t> packed_first, packed_second;
  std::vector<std::uint8_t> first_exponents, second_exponents;
  std::vector<UpdateSegment> segments;
  StateDtype dtype;

  explicit Range(StateDtype dtype) : dtype(dtype) {
    std::int64_t offset = 0;
    for (const std::int64_t numel : {70'001, 3, 1'000, 150'000, 257}) {
      const auto pieces = static_cast<std::int64_t>(segments.size());
      optim::Step step{config::OptimizerKind::kAdamW, {.lr = 1e-2, .weight_decay = 0.1}, 3 + pieces, 0.5F};
      step.rounding_key = static_cast<std::uint64_t>(pieces);
      step.rounding_shift = -offset;
      segments.push_back({offset, numel, step, offset / config::kStateBlockNumel + pieces});
      offset = round_up(offset + numel, 64);
    }
    const auto size = static_cast<std::size_t>(offset);
    for (auto* array : {&master, &first, &second, &gradient}) array->resize(size);
    packed_first.resize(size);
    packed_second.resize(size);
    first_exponents.resize(size / config::kStateBlockNumel + segments.size() + 1);
    second_exponents = first_exponents;
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (auto* array : {&master, &gradient}) {
      for (float& value : *array) value = normal(random);
    }
  }

  void update(int threads) {
    const int before = at::get_num_threads();
    at::set_num_threads(threads);
    optim::Arrays arrays{.master = master.data(), .state_dtype = dtype, .gradient = gradient.data()};
    if (dtype == StateDtype::kFloat32) {
      arrays.states = {first.data(), second.data()};
    } else {
      arrays.packed = {optim::PackedState{packed_first.data(), first_exponents.data()},
                       optim::PackedState{packed_second.data(), second_exponents.data()}};
    }
    for (int i = 0; i < 3; ++i) update_on_host(arrays, segments);
    at::set_num_threads(before);
  }

  bool operator==(const Range& other) const {
    return master == other.master && first == other.first && second == other.second &&
           packed_first == other.packed_first && packed_second == other.packed_second &&
           first_exponents == other.first_exponents && second_exponents == other.second_exponents;
  }
};

// Would catch threads that share a block of packed states, or split a parameter where rounding changes the result.
TEST(HostUpdate, DoesNotDependOnTheNumberOfThreads) {
  for (const StateDtype dtype : {StateDtype::kFloat32, StateDtype::kBFloat16, StateDtype::kInt8}) {
    Range alone(dtype);
    const Range initial = alone;
    alone.update(1);
    EXPECT_FALSE(alone == initial);
    for (const int threads : {2, 3, 7}) {
      Range together(dtype);
      together.update(threads);
      EXPECT_TRUE(together == alone) << threads << " threads, type " << static_cast<int>(dtype);
    }
  }
}

}  // namespace
}  // namespace zeropage::engine
