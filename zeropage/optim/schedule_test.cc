#include "zeropage/optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

#include "zeropage/base/error.h"

namespace zeropage::optim {
namespace {

using config::Schedule;
using config::ScheduleKind;

Schedule schedule_of(ScheduleKind kind) {
  Schedule config;
  config.kind = kind;
  return config;
}

/// Checks the rates of training steps 0, 1, 2, ... of a group with rate 1.0 against `expected`, computed by hand.
void expect_lrs(const Schedule& config, const std::vector<double>& expected) {
  LrSchedule schedule(config, {1.0});
  std::vector<double> lrs = schedule.lrs();
  for (std::size_t step = 0; step < expected.size(); ++step) {
    ASSERT_NEAR(lrs.at(0), expected[step], 1e-12) << "step " << step;
    lrs = schedule.step();
    EXPECT_EQ(schedule.last_batch_iteration(), static_cast<std::int64_t>(step));
  }
}

TEST(LrSchedule, WarmupLinear) {
  Schedule config = schedule_of(ScheduleKind::kWarmup);
  config.warmup_min_lr = 0.2;
  config.warmup_max_lr = 1.0;
  config.warmup_num_steps = 4;
  config.warmup_linear = true;
  expect_lrs(config, {0.2, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0});
}

TEST(LrSchedule, WarmupLogarithmic) {
  Schedule config = schedule_of(ScheduleKind::kWarmup);
  config.warmup_max_lr = 3.0;
  config.warmup_num_steps = 8;
  // ln(2)/ln(8) = 1/3, ln(4)/ln(8) = 2/3, ln(8)/ln(8) = 1
  expect_lrs(config, {0.0, 0.0, 1.0, std::log(3.0) / std::log(2.0), 2.0, std::log(5.0) / std::log(2.0),
                      std::log(6.0) / std::log(2.0), std::log(7.0) / std::log(2.0), 3.0, 3.0, 3.0});
}

TEST(LrSchedule, WarmupOfFewerThanTwoStepsCountsAsTwo) {
  for (std::int64_t steps : {0, 1, 2}) {
    Schedule config = schedule_of(ScheduleKind::kWarmup);
    config.warmup_max_lr = 5.0;
    config.warmup_num_steps = steps;
    expect_lrs(config, {0, 0, 5, 5});
  }
}

TEST(LrSchedule, WarmupWithoutMaximumGoesToEachGroupsOwnRate) {
  LrSchedule schedule(schedule_of(ScheduleKind::kWarmup), {0.1, 0.3});
  EXPECT_EQ(schedule.lrs(), (std::vector<double>{0.0, 0.0}));
  schedule.set_last_batch_iteration(2000);
  EXPECT_EQ(schedule.lrs(), (std::vector<double>{0.1, 0.3}));
}

TEST(LrSchedule, WarmupDecay) {
  Schedule config = schedule_of(ScheduleKind::kWarmupDecay);
  config.warmup_max_lr = 2.0;
  config.warmup_num_steps = 2;
  config.warmup_linear = true;
  config.total_num_steps = 6;
  expect_lrs(config, {0.0, 0.0, 1.0, 2.0, 1.5, 1.0, 0.5, 0.0, 0.0});
}

TEST(LrSchedule, WarmupDecayOfGroupsWithTheirOwnRates) {
  Schedule config = schedule_of(ScheduleKind::kWarmupDecay);
  config.warmup_num_steps = 2;
  config.warmup_linear = true;
  config.total_num_steps = 6;
  LrSchedule schedule(config, {1.0, 4.0});
  schedule.set_last_batch_iteration(2);
  EXPECT_EQ(schedule.lrs(), (std::vector<double>{1.0, 4.0})) << "without warmup_max_lr each warms up to its own";
  schedule.set_last_batch_iteration(4);
  EXPECT_EQ(schedule.lrs(), (std::vector<double>{0.5, 2.0}));
}

TEST(LrSchedule, WarmupDecayShorterThanItsWarmup) {
  Schedule config = schedule_of(ScheduleKind::kWarmupDecay);
  config.warmup_max_lr = 4.0;
  config.warmup_num_steps = 4;
  config.warmup_linear = true;
  config.total_num_steps = 2;
  expect_lrs(config, {0, 0, 1, 2, 3, 0, 0});
}

TEST(LrSchedule, WarmupCosine) {
  Schedule config = schedule_of(ScheduleKind::kWarmupCosine);
  config.warmup_num_steps = 2;
  config.warmup_linear = true;
  config.total_num_steps = 6;
  config.warmup_min_ratio = 0.5;
  config.cos_min_ratio = 0.2;
  const double eighth = std::cos(std::acos(-1.0) / 4);
  expect_lrs(config, {0.0, 0.5, 0.75, 0.2 + 0.4 * (1 + eighth), 0.6, 0.2 + 0.4 * (1 - eighth), 0.2, 0.2, 0.2});
  LrSchedule schedule(config, {2.0, 4.0});
  schedule.set_last_batch_iteration(1);
  EXPECT_EQ(schedule.lrs(), (std::vector<double>{1.5, 3.0}));
}

Schedule one_cycle() {
  Schedule config = schedule_of(ScheduleKind::kOneCycle);
  config.cycle_min_lr = 1.0;
  config.cycle_max_lr = 5.0;
  config.cycle_first_step_size = 4;
  config.cycle_second_step_size = 2;
  return config;
}

TEST(LrSchedule, OneCycleRisesFallsAndDecays) {
  expect_lrs(one_cycle(), {1, 2, 3, 4, 5, 3, 1, 1, 1, 1});
  Schedule decaying = one_cycle();
  decaying.decay_lr_rate = 0.5;
  decaying.decay_step_size = 2;
  expect_lrs(decaying, {1, 2, 3, 4, 5, 3, 1, 1 / 1.25, 1 / 1.5, 1 / 1.75});
  decaying.decay_step_size = 0;
  expect_lrs(decaying, {1, 2, 3, 4, 5, 3, 1, 1, 1, 1});
}

TEST(LrSchedule, OneCycleSecondHalfDefaultsToTheFirst) {
  Schedule config = one_cycle();
  config.cycle_second_step_size.reset();
  expect_lrs(config, {1, 2, 3, 4, 5, 4, 3, 2, 1, 1});
}

TEST(LrSchedule, OneCycleStairs) {
  Schedule config = one_cycle();
  config.cycle_first_stair_count = 2;
  expect_lrs(config, {1, 1, 3, 3, 5, 3, 1});
  config.cycle_second_stair_count = 1;
  expect_lrs(config, {1, 1, 3, 3, 5, 1, 1});
}

TEST(LrSchedule, OneCycleMomentumMirrorsTheRate) {
  Schedule config = one_cycle();
  config.decay_mom_rate = 0.1;
  config.decay_step_size = 1;
  LrSchedule schedule(config, {1.0, 1.0});
  // Before the first step the minimum, as DeepSpeed; then down from the maximum.
  const double expected[] = {0.8, 0.875, 0.85, 0.825, 0.8, 0.85, 0.9, 0.9 * 1.1, 0.9 * 1.2};
  for (double momentum : expected) {
    ASSERT_EQ(schedule.momenta().value().size(), 2U);
    EXPECT_NEAR(schedule.momenta()->at(1), momentum, 1e-12) << schedule.last_batch_iteration();
    schedule.step();
  }
  config.cycle_momentum = false;
  EXPECT_FALSE(LrSchedule(config, {1.0}).momenta().has_value());
  EXPECT_FALSE(LrSchedule(schedule_of(ScheduleKind::kWarmup), {1.0}).momenta().has_value());
}

TEST(LrSchedule, RangeTest) {
  Schedule config = schedule_of(ScheduleKind::kLrRangeTest);
  config.range_test_min_lr = 0.5;
  config.range_test_step_size = 2;
  config.range_test_step_rate = 3.0;
  expect_lrs(config, {0.5, 1.25, 2.0, 2.75, 3.5});
  config.range_test_staircase = true;
  expect_lrs(config, {0.5, 0.5, 2.0, 2.0, 3.5});
}

// Would catch a resumed run that repeats or skips a rate.
TEST(LrSchedule, ContinuesWhereItWas) {
  Schedule config = one_cycle();
  LrSchedule original(config, {1.0});
  for (int i = 0; i < 3; ++i) original.step();
  config.last_batch_iteration = original.last_batch_iteration();
  LrSchedule resumed(config, {1.0});
  EXPECT_EQ(resumed.lrs(), original.lrs());
  EXPECT_EQ(resumed.step(), original.step());
  EXPECT_THROW(resumed.set_last_batch_iteration(-2), CheckpointError);
}

// Would catch a missing warning about a warm-up that is longer than the run.
TEST(LrSchedule, AWarmupBeyondTheEndIsOdd) {
  Schedule config = schedule_of(ScheduleKind::kWarmupCosine);
  config.total_num_steps = 100;
  config.warmup_num_steps = 100;
  EXPECT_FALSE(schedule_warning(config).has_value());
  config.warmup_num_steps = 1000;
  EXPECT_NE(schedule_warning(config).value().find("1000 is more than total_num_steps 100"), std::string::npos);
  config.kind = ScheduleKind::kWarmup;  // has no end
  EXPECT_FALSE(schedule_warning(config).has_value());
}

TEST(LrSchedule, NonsenseIsAnError) {
  EXPECT_THROW(LrSchedule(schedule_of(ScheduleKind::kNone), {1.0}), ConfigError);
  Schedule config = one_cycle();
  config.cycle_first_step_size = 0;
  EXPECT_THROW(LrSchedule(config, {1.0}), ConfigError);
}

}  // namespace
}  // namespace zeropage::optim
