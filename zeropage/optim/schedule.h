/// \file
/// Learning-rate schedules. A schedule is a function of `last_batch_iteration`, the index of the last finished step, -1
/// before the first. The engine calls step() after every step that was not skipped; so step k (from 0) runs with the
/// rates of last_batch_iteration = k - 1. With i = last_batch_iteration and N = max(2, warmup_num_steps):
///
///   WarmupLR        min + (max - min) * w(i); w = ln(i + 1) / ln(N) ("log") or i / N ("linear") for i < N, then 1
///   WarmupDecayLR   the same for i < N, then w = max(0, (total - i) / max(1, total - N))
///   WarmupCosineLR  base * (r + (1 - r) * w(i)), r = warmup_min_ratio, for i < N, then
///                   base * (c + (1 - c) * (1 + cos(pi * x)) / 2), c = cos_min_ratio,
///                   x = min(1, (i - N + 1) / max(1, total - N))
///   OneCycle        min + (max - min) * s, where s is 0, 1, 0 over first + second steps (in stairs if configured),
///                   then min / (1 + decay_lr_rate * d), d = decay intervals since the end; beta1 changes in the
///                   opposite direction: max_mom - (max_mom - min_mom) * s, then max_mom * (1 + decay_mom_rate * d)
///   LRRangeTest     min * (1 + rate * (i + 1) / size), the fraction rounded down for a staircase
///
/// Before the first step (i = -1) the rates are those of DeepSpeed when it builds the schedule: WarmupLR and
/// WarmupDecayLR give warmup_min_lr, WarmupCosineLR 0, OneCycle cycle_min_lr with cycle_min_mom, LRRangeTest its
/// minimum. So the first step of a warm-up from 0 changes only the moments, and so does the second, because w(0) = 0,
/// as in DeepSpeed. Differences to DeepSpeed: without warmup_max_lr every group warms up to its own rate (DeepSpeed's
/// WarmupLR uses the first group's for all, its WarmupDecayLR 0.001), and OneCycle does not change beta2 (DeepSpeed
/// sets it to 0.99).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "zeropage/config/config.h"

namespace zeropage::optim {

class LrSchedule {
 public:
  /// `base_lrs`: each parameter group's rate without a schedule. Starts at config.last_batch_iteration.
  /// Errors: ConfigError when the kind is kNone or a step size is not positive.
  LrSchedule(const config::Schedule& config, std::vector<double> base_lrs);

  /// Adds a parameter group, with this rate without a schedule.
  void add_group(double base_lr) { base_lrs_.push_back(base_lr); }

  /// Advances to the next iteration and returns its rates.
  std::vector<double> step();

  /// Rates of the next training step, one per group. Cost: a few operations per group.
  std::vector<double> lrs() const;

  /// beta1 of the next training step, one per group; nullopt unless OneCycle with cycle_momentum.
  std::optional<std::vector<double>> momenta() const;

  std::int64_t last_batch_iteration() const { return iteration_; }

  /// For checkpoints. Errors: CheckpointError below -1.
  void set_last_batch_iteration(std::int64_t iteration);

 private:
  config::Schedule config_;
  std::vector<double> base_lrs_;
  std::int64_t iteration_;
};

/// A warning about a schedule that DeepSpeed accepts: a warm-up that is longer than total_num_steps. nullopt: none.
std::optional<std::string> schedule_warning(const config::Schedule& schedule);

}  // namespace zeropage::optim
