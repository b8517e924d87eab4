#include "zeropage/optim/loss_scale.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "zeropage/base/error.h"

namespace zeropage::optim {
namespace {

bool positive_and_finite(double value) { return value > 0.0 && std::isfinite(value); }

void check(const config::LossScale& config, double initial_scale) {
  const auto fail = [](const char* key, auto value) {
    throw ConfigError(fmt::format("fp16.{}: expected a positive, finite value, got {}", key, value));
  };
  if (!positive_and_finite(initial_scale)) fail(config.dynamic ? "initial_scale_power" : "loss_scale", initial_scale);
  if (!positive_and_finite(config.min_scale)) fail("min_loss_scale", config.min_scale);
  if (config.window < 1) fail("loss_scale_window", config.window);
  if (config.hysteresis < 1) fail("hysteresis", config.hysteresis);
}

}  // namespace

LossScaler::LossScaler(const config::LossScale& config) : config_(config) {
  state_.scale = config.dynamic ? std::ldexp(1.0, config.initial_power) : config.static_scale;
  state_.hysteresis_left = config.hysteresis;
  check(config, state_.scale);
}

void LossScaler::update(bool overflow, std::string_view parameter) {
  if (!config_.dynamic) return;
  if (overflow) {
    after_overflow(parameter);
  } else {
    after_clean_step();
  }
  ++state_.step;
}

void LossScaler::after_overflow(std::string_view parameter) {
  if (state_.hysteresis_left > 1) {
    --state_.hysteresis_left;
  } else if (state_.scale == config_.min_scale) {
    throw Error(fmt::format(
        "the gradients overflowed with the loss scale at its minimum, {} (fp16.min_loss_scale), in step {} first in "
        "parameter '{}': it cannot be lowered any more. The training has most likely diverged or has values fp16 "
        "cannot hold: lower the learning rate, set gradient_clipping, or use bf16 instead of fp16",
        config_.min_scale, state_.step + 1, parameter));
  } else {
    state_.scale = std::max(state_.scale / 2.0, config_.min_scale);
  }
  state_.last_overflow_step = state_.step;
}

void LossScaler::after_clean_step() {
  const std::int64_t clean_steps_before = state_.step - state_.last_overflow_step - 1;
  const bool grow = clean_steps_before > 0 && clean_steps_before % config_.window == 0;
  if (grow || config_.consecutive_hysteresis) state_.hysteresis_left = config_.hysteresis;
  if (grow) state_.scale *= 2.0;
}

void LossScaler::set_state(const LossScaleState& state) {
  if (!positive_and_finite(state.scale) || state.step < 0 || state.last_overflow_step < -1 ||
      state.last_overflow_step >= state.step || state.hysteresis_left < 1) {
    throw CheckpointError(
        fmt::format("the checkpoint's loss scale is damaged: scale {}, step {}, last overflow in step {}, hysteresis "
                    "left {}; expected a positive scale, an overflow before the step, and a hysteresis of at least 1",
                    state.scale, state.step, state.last_overflow_step, state.hysteresis_left));
  }
  if (!config_.dynamic) return;
  state_ = state;
  state_.hysteresis_left = std::min(state.hysteresis_left, config_.hysteresis);
}

}  // namespace zeropage::optim
