/// \file
/// The loss scale of fp16 training, by the rule of DeepSpeed's dynamic scaler:
///   1. A step that overflowed uses up one unit of hysteresis; on the last unit the scale is halved instead, not below
///      the minimum. If it is already at the minimum, training cannot continue: this is an error.
///   2. Let s be the number of clean steps since the last overflow (or the start), without the current one. When s is a
///      positive multiple of the window, the scale is doubled and the hysteresis is reset. (So the first doubling is at
///      clean step number window + 1.)
///   3. With consecutive_hysteresis every clean step resets the hysteresis; without it only a doubling does.
/// A static scale never changes.
#pragma once

#include <cstdint>
#include <string_view>

#include "zeropage/config/config.h"

namespace zeropage::optim {

/// The state of a LossScaler in a checkpoint.
struct LossScaleState {
  double scale = 1.0;
  std::int64_t step = 0;                 ///< number of updates so far
  std::int64_t last_overflow_step = -1;  ///< -1: none yet
  int hysteresis_left = 1;

  bool operator==(const LossScaleState&) const = default;
};

class LossScaler {
 public:
  /// Starts at 2^initial_power, or at the static scale. Errors: ConfigError for a scale, minimum, window or hysteresis
  /// that is not positive, or a scale that is not finite.
  explicit LossScaler(const config::LossScale& config);

  /// The factor of the next loss.
  double scale() const { return state_.scale; }
  bool dynamic() const { return config_.dynamic; }

  /// Records the result of a step, which must be the same on every rank. Errors: Error when the gradients overflowed at
  /// the minimal scale (the state is then unchanged), with the first such `parameter`.
  void update(bool overflow, std::string_view parameter = "unknown");

  const LossScaleState& state() const { return state_; }

  /// Continues from a checkpoint. A static scale stays that of the configuration. Errors: CheckpointError when `state`
  /// is impossible.
  void set_state(const LossScaleState& state);

 private:
  void after_overflow(std::string_view parameter);
  void after_clean_step();

  config::LossScale config_;
  LossScaleState state_;
};

}  // namespace zeropage::optim
