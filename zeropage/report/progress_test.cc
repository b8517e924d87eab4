#include "zeropage/report/progress.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace zeropage::report {
namespace {

/// A run whose clock and output the test controls.
struct FakeRun {
  double now_s = 100.0;
  std::vector<std::string> written;
  Progress progress;

  explicit FakeRun(ProgressOptions options)
      : progress(
            std::move(options), [this] { return now_s; },
            [this](std::string_view text) { written.emplace_back(text); }) {}

  void step(std::int64_t step, double after_s, double units = 1000.0) {
    now_s += after_s;
    progress.update({step, 2.5, 1e-4, units, {}});
  }
};

TEST(Progress, PlainLineShowsEverything) {
  FakeRun run({.total_steps = 1000, .unit = "tokens"});
  run.now_s += 7;
  run.progress.update({1, 3.14159, 1e-4, 1000, 65536.0});
  run.now_s += 5;
  run.progress.update({11, 2.5, 2e-4, 1000, 32768.0});
  ASSERT_EQ(run.written.size(), 2U);
  EXPECT_EQ(run.written[0], "step 1/1000  loss 3.1416  lr 1.00e-04  scale 65536\n");
  EXPECT_EQ(run.written[1], "step 11/1000  loss 2.5000  lr 2.00e-04  2.00k tokens/s  scale 32768  left 8m15s\n");
}

// Would catch rates of the whole run instead of the last steps, and a wrong limit.
TEST(Progress, TheDriveAndWhatLimits) {
  FakeRun run({.plain_interval_s = 0.0});
  for (const auto& [step, waited_s] : {std::pair(1, 0.0), std::pair(2, 1.5), std::pair(3, 1.5)}) {
    run.now_s += step == 3 ? 200 : 2;
    run.progress.update({step, 1.0, 1e-4, 1, {}, step * 4'000'000'000, waited_s});
  }
  EXPECT_TRUE(run.written[1].ends_with("disk 2.00 GB/s, limit: drive\n")) << run.written[1];
  EXPECT_TRUE(run.written[2].ends_with("disk 0.02 GB/s, limit: compute\n")) << run.written[2];
}

// Would catch a log file with a line per step.
TEST(Progress, PlainLinesComeAtMostEveryFewSeconds) {
  FakeRun run({.total_steps = 100, .plain_interval_s = 5.0});
  for (int step = 1; step <= 100; ++step) run.step(step, 0.1);
  EXPECT_EQ(run.written.size(), 2U);
  run.progress.finish();
  ASSERT_EQ(run.written.size(), 3U) << "the last step must show";
  EXPECT_EQ(run.written.back().substr(0, 12), "step 100/100");
  run.progress.finish();
  EXPECT_EQ(run.written.size(), 3U);
}

// Would catch remains of a longer line on the terminal.
TEST(Progress, TerminalLineIsRewrittenAndCleared) {
  FakeRun run({.terminal = true});
  run.now_s += 1;
  run.progress.update({1, 123456.0, 1e-4, 1, {}});
  run.now_s += 1;
  run.progress.update({2, 1.0, 1e-4, 1, {}});
  run.progress.finish();
  ASSERT_EQ(run.written.size(), 3U);
  EXPECT_EQ(run.written[0], "\rstep 1  loss 123456.0000  lr 1.00e-04");
  EXPECT_EQ(run.written[1], "\rstep 2  loss 1.0000  lr 1.00e-04  1.00 samples/s");
  EXPECT_EQ(run.written[2], "\n");
  run.now_s += 1;
  run.progress.update({3, 1.0, 1e-4, 1, {}});
  EXPECT_EQ(run.written.back()[0], '\r');
}

TEST(Progress, ShorterTerminalLineCoversTheOldOne) {
  FakeRun run({.terminal = true});
  run.progress.update({1, 1e12, 1e-4, 1, 65536.0});
  run.now_s += 1;
  run.progress.update({2, 1.0, 1e-4, 1, {}});
  EXPECT_GE(run.written[1].size(), run.written[0].size());
}

TEST(Progress, TerminalLineFitsTheTerminal) {
  FakeRun run({.terminal = true, .columns = 20});
  run.step(1, 1);
  EXPECT_EQ(run.written[0], "\rstep 1  loss 2.5000");
}

TEST(Progress, TerminalIsNotRewrittenFasterThanItCanBeRead) {
  FakeRun run({.terminal = true, .rewrite_interval_s = 0.1});
  for (int step = 1; step <= 1000; ++step) run.step(step, 0.001);
  EXPECT_LE(run.written.size(), 11U);
}

// Would catch a remaining time that the slow first step distorts, or that never adapts to a change of speed.
TEST(Progress, TimeLeftFollowsTheSpeed) {
  FakeRun run({.total_steps = 200, .plain_interval_s = 0.0});
  run.step(1, 300.0);
  for (int step = 2; step <= 50; ++step) run.step(step, 1.0);
  EXPECT_NE(run.written.back().find("1.00k samples/s"), std::string::npos) << run.written.back();
  EXPECT_NE(run.written.back().find("left 2m30s"), std::string::npos) << run.written.back();
  for (int step = 51; step <= 100; ++step) run.step(step, 2.0);
  EXPECT_NE(run.written.back().find("left 3m20s"), std::string::npos) << run.written.back();
}

TEST(Progress, FinishWithoutAStepWritesNothing) {
  FakeRun run({.terminal = true});
  run.progress.finish();
  EXPECT_TRUE(run.written.empty());
}

TEST(Progress, Quantities) {
  EXPECT_EQ(format_quantity(0.0), "0.00");
  EXPECT_EQ(format_quantity(9.994), "9.99");
  EXPECT_EQ(format_quantity(9.996), "10.0");
  EXPECT_EQ(format_quantity(123.4), "123");
  EXPECT_EQ(format_quantity(999.4), "999");
  EXPECT_EQ(format_quantity(999.6), "1.00k");
  EXPECT_EQ(format_quantity(12345), "12.3k");
  EXPECT_EQ(format_quantity(2.5e6), "2.50M");
  EXPECT_EQ(format_quantity(7e15), "7000T");
}

TEST(Progress, Durations) {
  EXPECT_EQ(format_duration(0.4), "0s");
  EXPECT_EQ(format_duration(59.6), "1m00s");
  EXPECT_EQ(format_duration(192), "3m12s");
  EXPECT_EQ(format_duration(7500), "2h05m");
  EXPECT_EQ(format_duration(4 * 86400 + 3 * 3600 + 59), "4d03h");
  EXPECT_EQ(format_duration(-1), "?");
  EXPECT_EQ(format_duration(NAN), "?");
  EXPECT_EQ(format_duration(INFINITY), "?");
}

}  // namespace
}  // namespace zeropage::report
