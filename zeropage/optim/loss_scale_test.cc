#include "zeropage/optim/loss_scale.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "zeropage/base/error.h"

namespace zeropage::optim {
namespace {

config::LossScale dynamic(std::int64_t window, int hysteresis, bool consecutive, int power = 4,
                          double min_scale = 4.0) {
  return {.initial_power = power,
          .window = window,
          .hysteresis = hysteresis,
          .consecutive_hysteresis = consecutive,
          .min_scale = min_scale};
}

/// The rule computed from the whole history instead of a state: the scale after each step, -1 for the error.
std::vector<double> scales_of_history(const std::vector<bool>& overflows, const config::LossScale& config) {
  std::vector<double> scales;
  double scale = std::ldexp(1.0, config.initial_power);
  std::size_t clean_run = 0;
  int overflows_since_refill = 0;
  for (bool overflow : overflows) {
    if (overflow) {
      clean_run = 0;
      const bool halve = ++overflows_since_refill >= config.hysteresis;
      if (halve && scale == config.min_scale) {
        scales.push_back(-1.0);
        return scales;
      }
      if (halve) scale = std::max(scale / 2, config.min_scale);
    } else {
      const bool grow = clean_run > 0 && clean_run % static_cast<std::size_t>(config.window) == 0;
      ++clean_run;
      if (grow) scale *= 2;
      if (grow || config.consecutive_hysteresis) overflows_since_refill = 0;
    }
    scales.push_back(scale);
  }
  return scales;
}

std::vector<double> scales_of_scaler(const std::vector<bool>& overflows, const config::LossScale& config) {
  LossScaler scaler(config);
  std::vector<double> scales;
  for (bool overflow : overflows) {
    const LossScaleState before = scaler.state();
    try {
      scaler.update(overflow);
    } catch (const Error&) {
      EXPECT_EQ(scaler.state(), before);
      scales.push_back(-1.0);
      return scales;
    }
    scales.push_back(scaler.scale());
  }
  return scales;
}

// Would catch any deviation from the rule: all 2^12 histories for every small window and hysteresis.
TEST(LossScaler, AllShortHistories) {
  constexpr int kSteps = 12;
  for (std::int64_t window = 1; window <= 3; ++window) {
    for (int hysteresis = 1; hysteresis <= 3; ++hysteresis) {
      for (bool consecutive : {false, true}) {
        const config::LossScale config = dynamic(window, hysteresis, consecutive);
        for (int history = 0; history < 1 << kSteps; ++history) {
          std::vector<bool> overflows;
          for (int step = 0; step < kSteps; ++step) overflows.push_back((history >> step & 1) != 0);
          ASSERT_EQ(scales_of_scaler(overflows, config), scales_of_history(overflows, config))
              << window << " " << hysteresis << " " << consecutive << " " << history;
        }
      }
    }
  }
}

// The rule by hand, window 2, hysteresis 2: o = overflow, . = clean.
TEST(LossScaler, ByHand) {
  const auto run = [](const std::string& history, bool consecutive) {
    std::vector<bool> overflows;
    for (char step : history) overflows.push_back(step == 'o');
    return scales_of_scaler(overflows, dynamic(2, 2, consecutive));
  };
  EXPECT_EQ(run("...", false), (std::vector<double>{16, 16, 32}));
  EXPECT_EQ(run("..o...", false), (std::vector<double>{16, 16, 16, 16, 16, 32}));
  EXPECT_EQ(run("o.o.o", false), (std::vector<double>{16, 16, 8, 8, 4})) << "hysteresis stays used up";
  EXPECT_EQ(run("o.o.o", true), (std::vector<double>{16, 16, 16, 16, 16})) << "a clean step resets it";
  EXPECT_EQ(run("oooo", false), (std::vector<double>{16, 8, 4, -1}));
}

TEST(LossScaler, NeverBelowAMinimumThatIsNoPowerOfTwo) {
  EXPECT_EQ(scales_of_scaler({true, true, true}, dynamic(2, 1, false, 4, 5.0)), (std::vector<double>{8, 5, -1}));
}

TEST(LossScaler, ErrorSaysWhatToDo) {
  LossScaler scaler(dynamic(2, 1, false, 2));
  try {
    scaler.update(true);
    FAIL();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("learning rate"), std::string::npos) << text;
    EXPECT_NE(text.find("bf16"), std::string::npos) << text;
  }
}

TEST(LossScaler, StaticScaleNeverChanges) {
  LossScaler scaler({.dynamic = false, .static_scale = 128.0});
  for (int i = 0; i < 3000; ++i) scaler.update(i % 3 == 0);
  EXPECT_EQ(scaler.scale(), 128.0);
  EXPECT_FALSE(scaler.dynamic());
}

// Would catch state that a checkpoint does not contain: a restored scaler must continue exactly like the saved one.
TEST(LossScaler, ContinuesFromItsState) {
  for (int cut = 0; cut < 12; ++cut) {
    LossScaler original(dynamic(3, 2, false));
    const auto overflow_in = [](int step) { return step % 5 == 1; };
    for (int step = 0; step < cut; ++step) original.update(overflow_in(step));
    LossScaler restored(dynamic(3, 2, false));
    restored.set_state(original.state());
    for (int step = cut; step < 12; ++step) {
      original.update(overflow_in(step));
      restored.update(overflow_in(step));
      ASSERT_EQ(original.state(), restored.state()) << cut << " " << step;
    }
  }
}

TEST(LossScaler, NonsenseIsAnError) {
  EXPECT_THROW(LossScaler({.dynamic = false, .static_scale = 0.0}), ConfigError);
  EXPECT_THROW(LossScaler({.initial_power = 2000}), ConfigError);
  EXPECT_THROW(LossScaler({.window = 0}), ConfigError);
  EXPECT_THROW(LossScaler({.hysteresis = 0}), ConfigError);
  EXPECT_THROW(LossScaler({.min_scale = -1.0}), ConfigError);
  LossScaler scaler(dynamic(3, 2, false));
  EXPECT_THROW(scaler.set_state({.scale = NAN}), CheckpointError);
  EXPECT_THROW(scaler.set_state({.scale = 1.0, .step = 3, .last_overflow_step = 3}), CheckpointError);
  EXPECT_THROW(scaler.set_state({.scale = 1.0, .hysteresis_left = 0}), CheckpointError);
}

}  // namespace
}  // namespace zeropage::optim
