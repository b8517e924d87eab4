#include "zeropage/config/optimizers.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "zeropage/base/error.h"
#include "zeropage/base/letter_case.h"

namespace zeropage::config {

using enum Status;

namespace {

using P = OptimizerParams;
using Hyperparameters = std::vector<Hyperparameter>;

Hyperparameter lr(double value) { return {"lr", &P::lr, real("lr", value, kSupported, "Learning rate.").at_least(0)}; }

Hyperparameter betas(double beta1, double beta2, const char* doc) {
  return {"betas", Hyperparameter::Betas{}, floats("betas", {beta1, beta2}, 2, kSupported, doc).from_up_to(0, 1)};
}

Hyperparameter eps(double value, const char* doc) {
  return {"eps", &P::eps, real("eps", value, kSupported, doc).at_least(0)};
}

Hyperparameter weight_decay(const char* doc) {
  return {"weight_decay", &P::weight_decay, real("weight_decay", 0.0, kSupported, doc).at_least(0)};
}

Hyperparameter bias_correction() {
  return {"bias_correction", &P::bias_correction,
          flag("bias_correction", true, kSupported, "Divide the moments by 1 - beta^step.")};
}

OptimizerEntry adam(OptimizerKind kind, const char* type) {
  return {kind,
          type,
          "Parameters of Adam and AdamW.",
          {"exp_avg", "exp_avg_sq"},
          {false, true},
          false,
          {lr(1e-3),
           betas(0.9, 0.999, "Decay of the first and the second moment."),
           eps(1e-8, "Added to the root of the second moment."),
           weight_decay("Weight decay."),
           bias_correction(),
           {"decoupled_weight_decay", &P::decoupled_decay,
            flag("adam_w_mode", true, kSupported,
                 "Adam only: true: decoupled decay (AdamW); false: L2 added to the gradient.")}},
          {flag("torch_adam", false, kAccepted, "There is only one implementation, with the same results as torch's."),
           flag("amsgrad", false, kNotBuilt, "Keep the maximum of the second moment."),
           flag("fp32_optimizer_states", true, kNotBuilt,
                "Moments in fp32; for 16 bits write zeropage.optimizer_state_dtype \"bf16\".")}};
}

OptimizerEntry lion() {
  return {OptimizerKind::kLion,
          "Lion",
          "Parameters of Lion.",
          {"exp_avg", nullptr},
          {false, false},
          false,
          {lr(1e-4), betas(0.9, 0.99, "Weight of the momentum in the direction, and its decay."),
           weight_decay("Decoupled weight decay.")},
          {}};
}

OptimizerEntry adagrad() {
  return {OptimizerKind::kAdagrad,
          "Adagrad",
          "Parameters of Adagrad.",
          {"sum", nullptr},
          {true, false},
          false,
          {lr(1e-2),
           {"lr_decay", &P::lr_decay,
            real("lr_decay", 0.0, kSupported, "The rate of a step is lr / (1 + steps before * lr_decay).").at_least(0)},
           weight_decay("L2 added to the gradient."),
           {"initial_accumulator_value", &P::initial_accumulator_value,
            real("initial_accumulator_value", 0.0, kSupported, "Initial value of the sum of squares.").at_least(0)},
           eps(1e-10, "Added to the root of the sum of squares.")},
          {flag("amsgrad", false, kNotBuilt, "Not a part of Adagrad."),
           flag("maximize", false, kNotBuilt, "Maximize the loss instead of minimizing it.")}};
}

OptimizerEntry sgd() {
  return {OptimizerKind::kSgd,
          "SGD",
          "Parameters of SGD.",
          {"momentum_buffer", nullptr},
          {false, false},
          true,
          {lr(1e-3),
           {"momentum", &P::momentum,
            real("momentum", 0.0, kSupported,
                 "Share of the momentum that remains at each step; 0: no momentum, and no memory for it.")
                .at_least(0)},
           {"dampening", &P::dampening,
            real("dampening", 0.0, kSupported, "The momentum gets (1 - dampening) times the gradient.").at_least(0)},
           weight_decay("L2 added to the gradient."),
           {"nesterov", &P::nesterov, flag("nesterov", false, kSupported, "Nesterov's momentum.")}},
          {flag("maximize", false, kNotBuilt, "Maximize the loss instead of minimizing it.")}};
}

OptimizerEntry lamb() {
  return {OptimizerKind::kLamb,
          "Lamb",
          "Parameters of Lamb.",
          {"exp_avg", "exp_avg_sq"},
          {false, true},
          false,
          {lr(1e-3),
           betas(0.9, 0.999, "Decay of the first and the second moment."),
           eps(1e-8, "Added to the root of the second moment."),
           {"eps_inside_sqrt", &P::eps_inside_sqrt,
            flag("eps_inside_sqrt", false, kSupported, "Add eps to the second moment instead of its root.")},
           weight_decay("Weight decay; it is part of the direction, so the direction's norm includes it."),
           bias_correction(),
           {"max_coeff", &P::max_coeff,
            real("max_coeff", 10.0, kSupported, "Largest ratio of a parameter's norm to the norm of its direction.")
                .positive()},
           {"min_coeff", &P::min_coeff, real("min_coeff", 0.01, kSupported, "Smallest such ratio.").at_least(0)}},
          {flag("amsgrad", false, kNotBuilt, "Keep the maximum of the second moment.")}};
}

}  // namespace

HyperparameterValue Hyperparameter::get(const OptimizerParams& params) const {
  if (const auto* number = std::get_if<double P::*>(&field)) return params.*(*number);
  if (const auto* yes = std::get_if<bool P::*>(&field)) return params.*(*yes);
  return std::pair(params.beta1, params.beta2);
}

void Hyperparameter::set(OptimizerParams& params, const HyperparameterValue& value) const {
  const auto* pair = std::get_if<std::pair<double, double>>(&value);
  const bool takes_pair = std::holds_alternative<Betas>(field);
  if (takes_pair != (pair != nullptr)) {
    throw ConfigError(fmt::format("expected {} as the hyperparameter {}, got {}",
                                  takes_pair ? "two numbers" : "one value", name,
                                  takes_pair ? "one value" : "two numbers"));
  }
  if (takes_pair) {
    std::tie(params.beta1, params.beta2) = *pair;
    return;
  }
  const auto* flag_value = std::get_if<bool>(&value);
  const double number = flag_value != nullptr ? (*flag_value ? 1.0 : 0.0) : std::get<double>(value);
  if (const auto* member = std::get_if<double P::*>(&field)) {
    params.*(*member) = number;
  } else {
    params.*std::get<bool P::*>(field) = number != 0.0;
  }
}

const Hyperparameter* OptimizerEntry::find(std::string_view name) const {
  const auto found = std::ranges::find_if(hyperparameters, [&](const auto& one) { return one.name == name; });
  return found == hyperparameters.end() ? nullptr : &*found;
}

const std::vector<OptimizerEntry>& optimizer_entries() {
  static const std::vector<OptimizerEntry> entries = {
      adam(OptimizerKind::kAdam, "Adam"), adam(OptimizerKind::kAdamW, "AdamW"), lion(), adagrad(), sgd(), lamb()};
  return entries;
}

const OptimizerEntry* find_optimizer(OptimizerKind kind) {
  const auto& entries = optimizer_entries();
  const auto found = std::ranges::find(entries, kind, &OptimizerEntry::kind);
  return found == entries.end() ? nullptr : &*found;
}

const OptimizerEntry* find_optimizer(std::string_view type) {
  const auto& entries = optimizer_entries();
  const auto found = std::ranges::find_if(entries, [&](const auto& entry) { return entry.type == type; });
  return found == entries.end() ? nullptr : &*found;
}

const Hyperparameter& find_hyperparameter(std::string_view name) {
  for (const auto& entry : optimizer_entries()) {
    if (const auto* found = entry.find(name)) return *found;
  }
  throw ConfigError(fmt::format("no optimizer has a hyperparameter {}", name));
}

OptimizerParams params_for_state(const std::vector<OptimizerParams>& groups) {
  if (groups.empty()) return {};
  const double sum = groups[0].initial_accumulator_value;
  if (std::ranges::any_of(groups, [&](const auto& group) { return group.initial_accumulator_value != sum; })) {
    throw ConfigError("parameter groups have different initial_accumulator_value; give all of them the same");
  }
  return *std::ranges::max_element(groups, {}, &OptimizerParams::momentum);
}

std::string optimizer_name(OptimizerKind kind) {
  const auto* entry = find_optimizer(kind);
  return entry == nullptr ? "" : lower_case(entry->type);
}

std::string optimizer_types() {
  std::string types;
  for (const auto& entry : optimizer_entries()) types += (types.empty() ? "" : ", ") + std::string(entry.type);
  return types;
}

int optimizer_state_count(const Optimizer& optimizer) {
  const bool none = optimizer.kind == OptimizerKind::kNone;
  const auto* entry = find_optimizer(none ? OptimizerKind::kAdamW : optimizer.kind);
  if (entry == nullptr || (entry->state_needs_momentum && optimizer.params.momentum == 0.0)) return 0;
  return static_cast<int>(std::ranges::count_if(entry->states, [](const char* name) { return name != nullptr; }));
}

std::array<const char*, kMaxOptimizerStates> optimizer_state_names(OptimizerKind kind) {
  const auto* entry = find_optimizer(kind == OptimizerKind::kNone ? OptimizerKind::kAdamW : kind);
  return entry == nullptr ? std::array<const char*, kMaxOptimizerStates>{} : entry->states;
}

}  // namespace zeropage::config
