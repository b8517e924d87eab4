#include "zeropage/engine/accumulation.h"

#include <gtest/gtest.h>

#include <vector>

#include "zeropage/base/error.h"

namespace zeropage::engine {
namespace {

/// Runs micro steps up to number `last` and records those that end a window.
void run(AccumulationWindow& window, std::vector<std::int64_t>& updates, std::int64_t last) {
  while (window.micro_steps() < last) {
    window.note_backward();
    const bool boundary = window.at_boundary();
    window.end_micro_step();
    if (!boundary) continue;
    updates.push_back(window.micro_steps());
    window.end();
  }
}

// Catches a window that is counted from the start of the run, so that new accumulation steps begin in the middle of
// one.
TEST(AccumulationWindow, NewStepsBeginWithTheNextWindow) {
  AccumulationWindow window(3, 4, 2);
  std::vector<std::int64_t> updates;
  run(window, updates, 3);
  window.set_steps(2);
  run(window, updates, 7);
  EXPECT_EQ(updates, (std::vector<std::int64_t>{3, 5, 7}));
  EXPECT_EQ(window.samples(), 24 + 16 + 16);
}

// Catches a window that can no longer end because it is longer than the new accumulation steps.
TEST(AccumulationWindow, FewerStepsEndAWindowThatIsAlreadyLonger) {
  AccumulationWindow window(4, 1, 1);
  std::vector<std::int64_t> updates;
  run(window, updates, 3);
  window.set_steps(2);
  run(window, updates, 6);
  EXPECT_EQ(updates, (std::vector<std::int64_t>{4, 6}));
}

// Catches an early update that shortens the window after it.
TEST(AccumulationWindow, AForcedBoundaryLeavesTheNextWindowWhole) {
  AccumulationWindow window(3, 1, 1);
  std::vector<std::int64_t> updates;
  window.force(true);
  run(window, updates, 1);
  window.force(std::nullopt);
  run(window, updates, 4);
  EXPECT_EQ(updates, (std::vector<std::int64_t>{1, 4}));
  window.force(false);
  run(window, updates, 9);
  window.force(std::nullopt);
  run(window, updates, 10);
  EXPECT_EQ(updates, (std::vector<std::int64_t>{1, 4, 10}));
}

// Catches micro steps that count although their gradients were dropped.
TEST(AccumulationWindow, RestartsWithoutAnUpdate) {
  AccumulationWindow window(2, 5, 1);
  std::vector<std::int64_t> updates;
  run(window, updates, 1);
  EXPECT_FALSE(window.is_new());
  window.restart();
  EXPECT_TRUE(window.is_new());
  run(window, updates, 3);
  EXPECT_EQ(updates, (std::vector<std::int64_t>{3}));
  EXPECT_EQ(window.samples(), 10);
}

// Catches a step() without an update although the program decides, and backwards that are not counted as micro steps.
TEST(AccumulationWindow, EveryStepEndsAWindowThatIsNotCounted) {
  AccumulationWindow window(4, 5, 1, /*counted=*/false);
  for (const int backwards : {1, 3, 0}) {
    for (int i = 0; i < backwards; ++i) window.note_backward();
    EXPECT_TRUE(window.at_boundary());
    EXPECT_EQ(window.is_new(), backwards == 0);
    window.end_micro_step();
    window.end();
  }
  EXPECT_EQ(window.micro_steps(), 1 + 3 + 1);
  EXPECT_EQ(window.samples(), 5 * 5);
}

TEST(AccumulationWindow, RefusesLessThanOne) {
  EXPECT_THROW(AccumulationWindow(0, 1, 1), UsageError);
  AccumulationWindow window(1, 1, 1);
  EXPECT_THROW(window.set_steps(0), UsageError);
  EXPECT_THROW(window.set_micro_batch_size(-1), UsageError);
}

// Catches a batch size that is rounded, or that changes the micro batch.
TEST(AccumulationWindow, TakesTheBatchOfAllRanks) {
  AccumulationWindow window(1, 2, 3);
  window.set_samples_of_update(24);
  EXPECT_EQ(window.steps(), 4);
  EXPECT_EQ(window.micro_batch_size(), 2);
  for (const std::int64_t samples : {0, -6, 25}) EXPECT_THROW(window.set_samples_of_update(samples), ConfigError);
  EXPECT_EQ(window.samples_of_update(), 24);
}

}  // namespace
}  // namespace zeropage::engine
