#include "zeropage/cpp/hyperparameters.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <variant>

#include "zeropage/base/error.h"
#include "zeropage/config/optimizers.h"

namespace zeropage {

namespace {

/// Calls visit(name, member of ParameterGroup) for every hyperparameter.
template <class Visit>
void each_hyperparameter(const Visit& visit) {
  using G = ParameterGroup;
  visit("lr", &G::lr);
  visit("betas", &G::betas);
  visit("eps", &G::eps);
  visit("weight_decay", &G::weight_decay);
  visit("bias_correction", &G::bias_correction);
  visit("decoupled_weight_decay", &G::decoupled_weight_decay);
  visit("momentum", &G::momentum);
  visit("dampening", &G::dampening);
  visit("nesterov", &G::nesterov);
  visit("lr_decay", &G::lr_decay);
  visit("initial_accumulator_value", &G::initial_accumulator_value);
  visit("max_coeff", &G::max_coeff);
  visit("min_coeff", &G::min_coeff);
  visit("eps_inside_sqrt", &G::eps_inside_sqrt);
  visit("use_muon", &G::use_muon);  // these two have no optimizer of the engine's own
  visit("muon_heads", &G::muon_heads);
}

}  // namespace

bool ParameterGroup::has_same_options(const ParameterGroup& other) const {
  bool same = true;
  each_hyperparameter([&](const char*, auto member) { same = same && this->*member == other.*member; });
  return same;
}

}  // namespace zeropage

namespace zeropage::cpp {

using config::OptimizerParams;

std::vector<OptimizerParams> hyperparameters(const std::vector<ParameterGroup>& groups,
                                             const config::Optimizer& optimizer) {
  std::vector<OptimizerParams> all(groups.size(), optimizer.params);
  const auto* entry = config::find_optimizer(optimizer.kind);
  for (std::size_t i = 0; i < groups.size(); ++i) {
    each_hyperparameter([&](const char* name, auto member) {
      const auto& value = groups[i].*member;
      if (!value) return;
      const auto* hyperparameter = entry == nullptr ? nullptr : entry->find(name);
      if (hyperparameter == nullptr) {
        throw ConfigError(fmt::format(
            "parameter group {} has {}, which the configured optimizer does not have: leave it out", i, name));
      }
      if constexpr (std::is_constructible_v<config::HyperparameterValue, decltype(*value)>) {
        hyperparameter->set(all[i], *value);
      }
    });
  }
  return all;
}

nlohmann::json hyperparameters_to_json(config::OptimizerKind kind, const OptimizerParams& params) {
  auto out = nlohmann::json::object();
  const auto* entry = config::find_optimizer(kind);
  if (entry == nullptr) return out;
  for (const auto& hyperparameter : entry->hyperparameters) {
    std::visit([&](const auto& value) { out[hyperparameter.name] = value; }, hyperparameter.get(params));
  }
  return out;
}

std::set<std::string> hyperparameter_names(config::OptimizerKind kind) {
  std::set<std::string> names;
  const auto* entry = config::find_optimizer(kind);
  if (entry == nullptr) return names;
  for (const auto& hyperparameter : entry->hyperparameters) names.insert(hyperparameter.name);
  return names;
}

std::string cannot_follow(const nlohmann::json& group, const std::set<std::string>& known) {
  static const std::set<std::string> harmless = {"foreach", "fused", "capturable", "differentiable"};
  if (!group.is_object()) return "";
  for (const auto& [name, value] : group.items()) {
    const bool usual = name == "bias_correction";  // the only flag that is true by default
    if (value.is_boolean() && value.get<bool>() != usual && !known.contains(name) && !harmless.contains(name)) {
      return name;
    }
  }
  return "";
}

std::string optimizer_facts(config::OptimizerKind kind, const std::vector<OptimizerParams>& groups) {
  std::string facts;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    facts += fmt::format("parameter group {}: {}\n", i, hyperparameters_to_json(kind, groups[i]).dump());
  }
  return facts;
}

void read_hyperparameters(const nlohmann::json& group, config::OptimizerKind kind, OptimizerParams& params) {
  const auto* entry = config::find_optimizer(kind);
  if (entry == nullptr) return;
  for (const auto& hyperparameter : entry->hyperparameters) {
    const auto found = group.find(hyperparameter.name);
    if (found == group.end()) continue;
    try {
      config::HyperparameterValue value = hyperparameter.get(params);  // used for its type
      std::visit([&](auto& typed) { found->get_to(typed); }, value);
      hyperparameter.set(params, value);
    } catch (const nlohmann::json::exception&) {
      throw CheckpointError(
          fmt::format("the checkpoint's hyperparameter {} cannot be used: {}", hyperparameter.name, found->dump()));
    }
  }
}

}  // namespace zeropage::cpp
