#include "zeropage/optim/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "zeropage/base/error.h"

namespace zeropage::optim {
namespace {

using config::Schedule;
using config::ScheduleKind;

std::int64_t warmup_steps(const Schedule& config) { return std::max<std::int64_t>(2, config.warmup_num_steps); }

/// 0 at the start, 1 at the end of the warm-up; for 0 <= i < N.
double warmup_share(const Schedule& config, std::int64_t i) {
  const double steps = static_cast<double>(warmup_steps(config));
  const double now = static_cast<double>(i);
  return config.warmup_linear ? now / steps : std::log(now + 1.0) / std::log(steps);
}

/// Steps left for the decay of WarmupDecayLR and WarmupCosineLR.
double decay_steps(const Schedule& config) {
  return static_cast<double>(std::max<std::int64_t>(1, config.total_num_steps - warmup_steps(config)));
}

double warmup_lr(const Schedule& config, double base_lr, std::int64_t i) {
  const bool decays = config.kind == ScheduleKind::kWarmupDecay;
  const double max_lr = config.warmup_max_lr.value_or(base_lr);
  double share = 1.0;
  if (i < 0) {
    share = 0.0;
  } else if (i < warmup_steps(config)) {
    share = warmup_share(config, i);
  } else if (decays) {
    share = std::max(0.0, static_cast<double>(config.total_num_steps - i) / decay_steps(config));
  }
  return config.warmup_min_lr + (max_lr - config.warmup_min_lr) * share;
}

double warmup_cosine_lr(const Schedule& config, double base_lr, std::int64_t i) {
  if (i < 0) return 0.0;
  if (i < warmup_steps(config)) {
    return base_lr * (config.warmup_min_ratio + (1.0 - config.warmup_min_ratio) * warmup_share(config, i));
  }
  const double progress = std::min(1.0, static_cast<double>(i - warmup_steps(config) + 1) / decay_steps(config));
  const double height = (1.0 + std::cos(std::numbers::pi * progress)) / 2.0;
  return base_lr * (config.cos_min_ratio + (1.0 - config.cos_min_ratio) * height);
}

double range_test_lr(const Schedule& config, std::int64_t i) {
  double intervals = static_cast<double>(i + 1) / static_cast<double>(config.range_test_step_size);
  if (config.range_test_staircase) intervals = std::floor(intervals);
  return config.range_test_min_lr * (1.0 + config.range_test_step_rate * intervals);
}

std::int64_t second_step_size(const Schedule& config) {
  return config.cycle_second_step_size.value_or(config.cycle_first_step_size);
}

std::int64_t cycle_size(const Schedule& config) { return config.cycle_first_step_size + second_step_size(config); }

/// Height in the cycle, 0 to 1 and back. Computed from whole steps, so that stairs begin at exact steps.
double cycle_height(const Schedule& config, std::int64_t i) {
  const std::int64_t position = (i + 1) % cycle_size(config);
  const bool rising = position <= config.cycle_first_step_size;
  const std::int64_t length = rising ? config.cycle_first_step_size : second_step_size(config);
  const std::int64_t climbed = rising ? position : cycle_size(config) - position;
  const std::int64_t stairs = rising ? config.cycle_first_stair_count
                                     : config.cycle_second_stair_count.value_or(config.cycle_first_stair_count);
  if (stairs == 0) return static_cast<double>(climbed) / static_cast<double>(length);
  const std::int64_t stair = climbed * stairs / length;  // of 0 to `stairs`, rounded down
  return static_cast<double>(stair) / static_cast<double>(stairs);
}

bool in_cycle(const Schedule& config, std::int64_t i) { return i < cycle_size(config); }

/// Decay intervals since the end of the cycle; 0 when there is no decay.
double decay_intervals(const Schedule& config, std::int64_t i) {
  if (config.decay_step_size == 0) return 0.0;
  return static_cast<double>(i - cycle_size(config) + 1) / static_cast<double>(config.decay_step_size);
}

double one_cycle_lr(const Schedule& config, std::int64_t i) {
  if (!in_cycle(config, i)) return config.cycle_min_lr / (1.0 + config.decay_lr_rate * decay_intervals(config, i));
  return config.cycle_min_lr + (config.cycle_max_lr - config.cycle_min_lr) * cycle_height(config, i);
}

double one_cycle_momentum(const Schedule& config, std::int64_t i) {
  if (i < 0) return config.cycle_min_mom;
  if (!in_cycle(config, i)) return config.cycle_max_mom * (1.0 + config.decay_mom_rate * decay_intervals(config, i));
  return config.cycle_max_mom - (config.cycle_max_mom - config.cycle_min_mom) * cycle_height(config, i);
}

double lr_at(const Schedule& config, double base_lr, std::int64_t i) {
  switch (config.kind) {
    case ScheduleKind::kWarmup:
    case ScheduleKind::kWarmupDecay: return warmup_lr(config, base_lr, i);
    case ScheduleKind::kWarmupCosine: return warmup_cosine_lr(config, base_lr, i);
    case ScheduleKind::kOneCycle: return one_cycle_lr(config, i);
    case ScheduleKind::kLrRangeTest: return range_test_lr(config, i);
    case ScheduleKind::kNone: break;
  }
  return base_lr;
}

void check(const Schedule& config) {
  if (config.kind == ScheduleKind::kNone) {
    throw ConfigError("LrSchedule: no schedule is configured; expected scheduler.type to name one");
  }
  const auto positive = [](std::int64_t value, const char* key) {
    if (value < 1) throw ConfigError(fmt::format("scheduler.params.{}: expected at least 1, got {}", key, value));
  };
  positive(config.cycle_first_step_size, "cycle_first_step_size");
  positive(second_step_size(config), "cycle_second_step_size");
  positive(config.range_test_step_size, "lr_range_test_step_size");
}

}  // namespace

LrSchedule::LrSchedule(const config::Schedule& config, std::vector<double> base_lrs)
    : config_(config), base_lrs_(std::move(base_lrs)), iteration_(config.last_batch_iteration) {
  check(config_);
}

std::vector<double> LrSchedule::step() {
  ++iteration_;
  return lrs();
}

std::vector<double> LrSchedule::lrs() const {
  std::vector<double> lrs;
  for (double base_lr : base_lrs_) lrs.push_back(lr_at(config_, base_lr, iteration_));
  return lrs;
}

std::optional<std::vector<double>> LrSchedule::momenta() const {
  if (config_.kind != ScheduleKind::kOneCycle || !config_.cycle_momentum) return std::nullopt;
  return std::vector<double>(base_lrs_.size(), one_cycle_momentum(config_, iteration_));
}

void LrSchedule::set_last_batch_iteration(std::int64_t iteration) {
  if (iteration < -1) {
    throw CheckpointError(
        fmt::format("learning-rate schedule: expected a last_batch_iteration of -1 or more, got {}", iteration));
  }
  iteration_ = iteration;
}

std::optional<std::string> schedule_warning(const config::Schedule& schedule) {
  const bool decays =
      schedule.kind == config::ScheduleKind::kWarmupDecay || schedule.kind == config::ScheduleKind::kWarmupCosine;
  if (!decays || schedule.warmup_num_steps <= schedule.total_num_steps) return std::nullopt;
  return fmt::format(
      "scheduler.params: warmup_num_steps {} is more than total_num_steps {}: a run of that length ends before the "
      "full learning rate is reached; set warmup_num_steps to a part of total_num_steps",
      schedule.warmup_num_steps, schedule.total_num_steps);
}

}  // namespace zeropage::optim
