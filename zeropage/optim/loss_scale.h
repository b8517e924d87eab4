/// \file
/// The loss scale of fp16 training, by the rule of DeepSpeed's dynamic scaler:
///   1. A step that overflowed uses up one unit of hysteresis; on the last unit the scale is halved instead, not below
///      the minimum. When it is at the minimum already, training cannot go on: an error.
///   2. Let s be the clean steps since the last overflow (or the start), the current one not counted. When s is a
///      positive multiple of the window the scale is doubled and the hysteresis refilled. (So the first doubling comes
///      with clean step number window + 1.)
///   3. With consecutive_hysteresis every clean step refills the hysteresis; without it only a doubling does.
/// A static scale never changes.
#pragma once

#include <cstdint>
#include <string_view>

#include "zeropage/config/config.h"

namespace zeropage::optim {

/// What a checkpoint keeps of a LossScaler.
struct LossScaleState {
  double scale = 1.0;
  std::int64_t step = 0;                 ///< updates so far
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

  /// Tells how the step went; every rank must be told the same. Errors: Error when the gradients overflowed at the
  /// minimal scale (the state then stays as it was); it names the first `parameter` that did.
  void update(bool overflow, std::string_view parameter = "unknown");

  const LossScaleState& state() const { return state_; }

  /// Continues from a checkpoint. A static scale stays what the configuration says. Errors: CheckpointError when
  /// `state` is none that a scaler can be in.
  void set_state(const LossScaleState& state);

 private:
  void after_overflow(std::string_view parameter);
  void after_clean_step();

  config::LossScale config_;
  LossScaleState state_;
};

}  // namespace zeropage::optim
