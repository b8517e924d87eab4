#include "zeropage/optim/packed_state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "zeropage/optim/convert.h"
#include "zeropage/optim/lamb.h"
#include "zeropage/optim/test_state.h"

namespace zeropage::optim {
namespace {

using config::OptimizerKind;
using config::StateDtype;

constexpr std::int64_t kBlock = kPackedBlockNumel;
constexpr StateDtype kPackedDtypes[] = {StateDtype::kBFloat16, StateDtype::kInt8};

/// Magnitudes over many powers of two.
std::vector<float> squares_or_signed(std::int64_t numel, bool squares, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(numel);
  for (float& value : values) value = std::ldexp(normal(random), -static_cast<int>(random() % 12));
  if (squares) {
    for (float& value : values) value *= value;
  }
  return values;
}

// Would catch states that change when they are read and written, as in a loaded checkpoint.
TEST(PackedState, IsTheSameWhenPackedAgain) {
  for (const StateDtype dtype : kPackedDtypes) {
    for (const bool squares : {false, true}) {
      const std::int64_t numel = 20 * kBlock + 17;
      Packed first(numel, dtype, squares);
      first.pack_all(squares_or_signed(numel, squares, 1), 5);
      const auto values = first.unpacked(numel);
      Packed again(numel, dtype, squares);
      again.pack_all(values, 99);
      EXPECT_EQ(again.unpacked(numel), values);
    }
  }
}

// Would catch a code that is too coarse, or scaled by the wrong power of two: one part in 8 of an element, or of the
// smallest step of its block, 2^-17 of the block's power of two (squares: 2^-33), may be lost.
TEST(PackedState, KeepsThreeBitsOfEveryElement) {
  for (const bool squares : {false, true}) {
    const std::int64_t numel = 64 * kBlock;
    const auto values = squares_or_signed(numel, squares, 2);
    Packed packed(numel, StateDtype::kInt8, squares);
    packed.pack_all(values, 3);
    const auto kept = packed.unpacked(numel);
    for (std::int64_t i = 0; i < numel; ++i) {
      const auto* block = values.data() + i / kBlock * kBlock;
      const float largest = std::abs(
          *std::max_element(block, block + kBlock, [](float a, float b) { return std::abs(a) < std::abs(b); }));
      const float step = std::ldexp(largest, squares ? -32 : -16);
      ASSERT_NEAR(kept[i], values[i], std::max(std::abs(values[i]) / 8, step)) << i;
      ASSERT_TRUE(!squares || kept[i] > 0 || values[i] == 0) << "a parameter with this second moment would jump";
      ASSERT_TRUE(squares || kept[i] * values[i] >= 0);
    }
  }
}

// Would catch rounding that is not right on average: a moment that grows by less than a step per update must still
// grow.
TEST(PackedState, IsRightOnAverage) {
  for (const StateDtype dtype : kPackedDtypes) {
    for (const bool squares : {false, true}) {
      std::vector<float> values(kBlock, 0.7F);
      values[0] = 1.0F;
      values[1] = 0.0131F;
      Packed packed(kBlock, dtype, squares);
      double small = 0.0;
      double others = 0.0;
      constexpr int kTries = 4000;
      for (int key = 0; key < kTries; ++key) {
        packed.pack_all(values, static_cast<std::uint64_t>(key));
        const auto kept = packed.unpacked(kBlock);
        small += kept[1] / kTries;
        for (int i = 2; i < kBlock; ++i) others += kept[i] / (kTries * (kBlock - 2.0));
      }
      // Steps are at most an eighth of a power of two: deviations of 0.04 and 0.0005 over the root of the number of
      // trials.
      EXPECT_NEAR(small, 0.0131, 5 * 0.0005 / std::sqrt(kTries));
      EXPECT_NEAR(others, 0.7, 5 * 0.04 / std::sqrt(kTries * (kBlock - 2.0)));
    }
  }
}

// Would catch padding that does not stay zero, and lost infinities and NaNs.
TEST(PackedState, ZerosAndWhatIsNotFinite) {
  Packed packed(2 * kBlock, StateDtype::kInt8, false);
  std::vector<float> values(2 * kBlock, 0.0F);
  values[kBlock] = INFINITY;
  packed.pack_all(values, 7);
  const auto kept = packed.unpacked(2 * kBlock);
  for (std::int64_t i = 0; i < kBlock; ++i) ASSERT_EQ(kept[i], 0.0F);
  EXPECT_FALSE(std::isfinite(kept[kBlock]));
  EXPECT_EQ(Packed(kBlock, StateDtype::kInt8, true).unpacked(kBlock), std::vector<float>(kBlock, 0.0F));
}

/// The memory of an update with packed states.
struct PackedUpdate {
  State wide;
  Packed first, second;

  PackedUpdate(std::int64_t numel, OptimizerKind kind, StateDtype dtype, DType gradient_dtype = DType::kBFloat16,
               DType parameter_dtype = DType::kBFloat16)
      : wide(numel, gradient_dtype, parameter_dtype, 4),
        first(numel, dtype, is_sum_of_squares(kind, 0)),
        second(numel, dtype, is_sum_of_squares(kind, 1)) {
    first.pack_all(wide.first, 1);
    second.pack_all(wide.second, 2);
  }
  /// begin: index of the first element, which begins a block.
  Arrays arrays(std::int64_t begin = 0) {
    Arrays arrays = wide.arrays(begin);
    arrays.states = {};
    arrays.state_dtype = first.dtype;
    arrays.packed = {first.state().from(begin, first.dtype), second.state().from(begin, first.dtype)};
    return arrays;
  }
  bool operator==(const PackedUpdate& other) const {
    return wide == other.wide && first == other.first && second == other.second;
  }
};

std::vector<Step> packed_steps() {
  return {{OptimizerKind::kAdamW, {.lr = 1e-2, .weight_decay = 0.1}, 7, 0.37F},
          {OptimizerKind::kAdam, {.lr = 1e-2}, 2},
          {OptimizerKind::kLion, {.lr = 1e-3, .beta2 = 0.99}},
          {OptimizerKind::kAdagrad, {.lr = 1e-2, .eps = 1e-10}},
          {OptimizerKind::kSgd, {.lr = 0.1, .momentum = 0.9}, 3}};
}

// Would catch vector kernels, or blocks, that treat packed states differently from the scalar reference, and updates
// that depend on where a range is split.
TEST(PackedUpdate, EqualsTheScalarTwinAndDoesNotDependOnSplits) {
  const std::int64_t numel = 11 * kBlock + 100;
  for (Step step : packed_steps()) {
    step.rounding_key = 12;
    for (const StateDtype dtype : kPackedDtypes) {
      const PackedUpdate initial(numel, step.kind, dtype);
      PackedUpdate whole = initial, twin = initial, parts = initial;
      update(whole.arrays(), numel, step);
      update_reference(twin.arrays(), numel, step);
      const std::int64_t cuts[] = {0, kBlock, 4 * kBlock, 9 * kBlock, numel};
      for (int i = 0; i < 4; ++i) update(parts.arrays().from(cuts[i]), cuts[i + 1] - cuts[i], step);
      ASSERT_TRUE(whole == twin && whole == parts) << static_cast<int>(step.kind);
      ASSERT_FALSE(whole == initial);
    }
  }
}

// Would catch the same at any length, alignment and type, and codes that are written before or past the end.
TEST(PackedUpdate, EqualsTheScalarTwinAtEveryLength) {
  constexpr DType kDtypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  for (const Step& step : packed_steps()) {
    for (const StateDtype dtype : kPackedDtypes) {
      for (DType gradient_dtype : kDtypes) {
        for (DType parameter_dtype : kDtypes) {
          const PackedUpdate initial(96, step.kind, dtype, gradient_dtype, parameter_dtype);
          for (std::size_t numel = 0; numel <= 67; ++numel) {
            for (std::size_t begin : {0, 1, 7}) {
              PackedUpdate fast = initial, slow = initial;
              update(fast.arrays(begin), numel, step);
              update_reference(slow.arrays(begin), numel, step);
              ASSERT_TRUE(fast == slow) << static_cast<int>(step.kind) << numel << " from " << begin;
              const std::size_t code_bytes = dtype == StateDtype::kInt8 ? 1 : 2;
              const auto* codes = reinterpret_cast<const char*>(fast.first.data.data());
              const auto* old = reinterpret_cast<const char*>(initial.first.data.data());
              const std::size_t end_bytes = (begin + numel) * code_bytes;
              ASSERT_EQ(std::memcmp(codes, old, begin * code_bytes), 0);
              ASSERT_EQ(std::memcmp(codes + end_bytes, old + end_bytes, 2 * 96 - end_bytes), 0);
            }
          }
        }
      }
    }
  }
}

// Would catch a wrong state that is read or written: the update must be the one of the widened states, which are then
// rounded.
TEST(PackedUpdate, IsTheUpdateOfTheWidenedStates) {
  const std::int64_t numel = 5 * kBlock;
  for (const Step& step : packed_steps()) {
    for (const StateDtype dtype : kPackedDtypes) {
      PackedUpdate packed(numel, step.kind, dtype);
      State precise = packed.wide;
      precise.first = packed.first.unpacked(numel);
      precise.second = packed.second.unpacked(numel);
      update(packed.arrays(), numel, step);
      update(precise.arrays(), numel, step);
      ASSERT_EQ(packed.wide.master, precise.master) << static_cast<int>(step.kind);
      const auto kept = packed.first.unpacked(numel);
      double difference = 0.0;
      double norm = 0.0;
      for (std::int64_t i = 0; i < numel; ++i) {
        difference += std::pow(kept[i] - precise.first[i], 2);
        norm += std::pow(precise.first[i], 2);
      }
      EXPECT_LT(std::sqrt(difference / norm), 0.06) << static_cast<int>(step.kind);
    }
  }
}

// Would catch a second pass of Lamb that rounds the moments again, or uses others: Lamb reads its moments twice.
TEST(PackedUpdate, LambMovesByTheMomentsThatItKeeps) {
  const std::int64_t numel = 3000;
  const Step step{OptimizerKind::kLamb, {.lr = 1e-2, .weight_decay = 0.1}, 3};
  PackedUpdate packed(numel, step.kind, StateDtype::kBFloat16);
  lamb_moments(packed.arrays(), numel, step);
  const PackedUpdate moved = packed;
  State precise = packed.wide;
  precise.first = packed.first.unpacked(numel);
  precise.second = packed.second.unpacked(numel);
  lamb_apply(packed.arrays(), numel, step, 0.5);
  lamb_apply(precise.arrays(), numel, step, 0.5);
  EXPECT_EQ(packed.wide.master, precise.master);
  EXPECT_TRUE(packed.first == moved.first && packed.second == moved.second);
}

}  // namespace
}  // namespace zeropage::optim
