#include "zeropage/engine/accumulation.h"

#include <fmt/format.h>

#include <algorithm>

#include "zeropage/base/error.h"

namespace zeropage::engine {
namespace {

std::int64_t at_least_one(std::int64_t value, const char* what) {
  if (value < 1) throw UsageError(fmt::format("{} must be at least 1, got {}", what, value));
  return value;
}

}  // namespace

AccumulationWindow::AccumulationWindow(std::int64_t steps, std::int64_t micro_batch_size, int ranks, bool counted)
    : steps_(at_least_one(steps, "gradient accumulation steps")),
      micro_batch_size_(at_least_one(micro_batch_size, "the micro batch size")),
      ranks_(ranks),
      counted_(counted) {}

void AccumulationWindow::set_steps(std::int64_t steps) { steps_ = at_least_one(steps, "gradient accumulation steps"); }

void AccumulationWindow::set_micro_batch_size(std::int64_t samples) {
  micro_batch_size_ = at_least_one(samples, "the micro batch size");
}

void AccumulationWindow::set_samples_of_update(std::int64_t samples) {
  const std::int64_t per_step = micro_batch_size_ * ranks_;
  if (samples < 1 || samples % per_step != 0) {
    throw ConfigError(fmt::format("train_batch_size {} is not a positive multiple of micro batch {} * {} ranks = {}",
                                  samples, micro_batch_size_, ranks_, per_step));
  }
  steps_ = samples / per_step;
}

void AccumulationWindow::end_micro_step() {
  // A step without a backward uses the program's own p.grad: one micro batch.
  const std::int64_t micro_steps = counted_ ? 1 : std::max<std::int64_t>(backwards_, 1);
  ended_ += micro_steps;
  micro_steps_ += micro_steps;
  window_samples_ += micro_steps * micro_batch_size_ * ranks_;
  backwards_ = 0;
}

void AccumulationWindow::end() {
  samples_ += window_samples_;
  restart();
}

void AccumulationWindow::restart() {
  ended_ = 0;
  window_samples_ = 0;
  backwards_ = 0;
}

}  // namespace zeropage::engine
