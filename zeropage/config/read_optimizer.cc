#include "zeropage/config/read_optimizer.h"

#include <fmt/format.h>

#include "zeropage/config/optimizers.h"

namespace zeropage::config {
namespace {

void check_optimizer(const Settings& settings, const Optimizer& optimizer) {
  const auto key = [](const char* name) { return std::string("optimizer.params.") + name; };
  const OptimizerParams& params = optimizer.params;
  if (optimizer.kind == OptimizerKind::kAdamW && !params.decoupled_decay) {
    settings.fail(
        key("adam_w_mode"),
        "expected true, because the type is \"AdamW\", got false; write type \"Adam\" for L2 in the gradient");
  }
  if (params.nesterov && (params.momentum == 0.0 || params.dampening != 0.0)) {
    settings.fail(key("nesterov"),
                  "expected a momentum above 0 and no dampening together with it; set momentum, or nesterov to false");
  }
  if (optimizer.kind == OptimizerKind::kLamb && params.min_coeff > params.max_coeff) {
    settings.fail(key("min_coeff"),
                  fmt::format("expected at most max_coeff, {}, got {}", params.max_coeff, params.min_coeff));
  }
}

HyperparameterValue read_hyperparameter(const Settings& settings, const Hyperparameter& hyperparameter) {
  const std::string path = "optimizer.params." + hyperparameter.key.name;
  switch (hyperparameter.key.type) {
    case Type::kBool: return settings.flag(path);
    case Type::kFloats: return std::pair(settings.floats(path)[0], settings.floats(path)[1]);
    default: return settings.real(path);
  }
}

void read_warmup(const Settings& settings, Schedule& schedule) {
  const auto key = [](const char* name) { return std::string("scheduler.params.") + name; };
  schedule.warmup_num_steps = settings.integer(key("warmup_num_steps"));
  schedule.warmup_linear = settings.string(key("warmup_type")) == "linear";
  if (schedule.kind == ScheduleKind::kWarmupCosine) {
    schedule.warmup_min_ratio = settings.real(key("warmup_min_ratio"));
    schedule.cos_min_ratio = settings.real(key("cos_min_ratio"));
  } else {
    schedule.warmup_min_lr = settings.real(key("warmup_min_lr"));
    schedule.warmup_max_lr = settings.optional<double>(key("warmup_max_lr"));
  }
  if (schedule.kind == ScheduleKind::kWarmup) return;
  schedule.total_num_steps = settings.integer(key("total_num_steps"));
}

void read_one_cycle(const Settings& settings, Schedule& schedule) {
  const auto key = [](const char* name) { return std::string("scheduler.params.") + name; };
  schedule.cycle_min_lr = settings.real(key("cycle_min_lr"));
  schedule.cycle_max_lr = settings.real(key("cycle_max_lr"));
  schedule.decay_lr_rate = settings.real(key("decay_lr_rate"));
  schedule.cycle_first_step_size = settings.integer(key("cycle_first_step_size"));
  schedule.cycle_second_step_size = settings.optional<std::int64_t>(key("cycle_second_step_size"));
  schedule.cycle_first_stair_count = settings.integer(key("cycle_first_stair_count"));
  schedule.cycle_second_stair_count = settings.optional<std::int64_t>(key("cycle_second_stair_count"));
  schedule.decay_step_size = settings.integer(key("decay_step_size"));
  schedule.cycle_momentum = settings.flag(key("cycle_momentum"));
  schedule.cycle_min_mom = settings.real(key("cycle_min_mom"));
  schedule.cycle_max_mom = settings.real(key("cycle_max_mom"));
  schedule.decay_mom_rate = settings.real(key("decay_mom_rate"));
}

}  // namespace

Optimizer read_optimizer(const Settings& settings) {
  Optimizer optimizer;
  const auto type = settings.optional<std::string>("optimizer.type");
  if (!type) return optimizer;
  const OptimizerEntry* entry = find_optimizer(*type);
  if (entry == nullptr) {
    optimizer.kind = OptimizerKind::kClient;
    // Muon's two halves have defaults of their own.
    optimizer.params.lr = settings.optional<double>("optimizer.params.lr").value_or(0.02);
    return optimizer;
  }
  optimizer.kind = entry->kind;
  for (const auto& hyperparameter : entry->hyperparameters) {
    hyperparameter.set(optimizer.params, read_hyperparameter(settings, hyperparameter));
  }
  check_optimizer(settings, optimizer);
  return optimizer;
}

Schedule read_schedule(const Settings& settings) {
  Schedule schedule;
  const auto type = settings.optional<std::string>("scheduler.type");
  if (!type) return schedule;
  const auto key = [](const char* name) { return std::string("scheduler.params.") + name; };
  schedule.last_batch_iteration = settings.integer(key("last_batch_iteration"));
  if (*type == "OneCycle") {
    schedule.kind = ScheduleKind::kOneCycle;
    read_one_cycle(settings, schedule);
  } else if (*type == "LRRangeTest") {
    schedule.kind = ScheduleKind::kLrRangeTest;
    schedule.range_test_min_lr = settings.real(key("lr_range_test_min_lr"));
    schedule.range_test_step_size = settings.integer(key("lr_range_test_step_size"));
    schedule.range_test_step_rate = settings.real(key("lr_range_test_step_rate"));
    schedule.range_test_staircase = settings.flag(key("lr_range_test_staircase"));
  } else {
    schedule.kind = *type == "WarmupLR"        ? ScheduleKind::kWarmup
                    : *type == "WarmupDecayLR" ? ScheduleKind::kWarmupDecay
                                               : ScheduleKind::kWarmupCosine;
    read_warmup(settings, schedule);
  }
  return schedule;
}

}  // namespace zeropage::config
