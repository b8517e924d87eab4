#include "zeropage/cpp/hyperparameters.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <utility>

#include "zeropage/base/error.h"

namespace zeropage {

bool ParameterGroup::has_same_options(const ParameterGroup& other) const {
  const auto options = [](const ParameterGroup& group) {
    return std::tie(group.lr, group.betas, group.eps, group.weight_decay, group.bias_correction,
                    group.decoupled_weight_decay, group.momentum, group.dampening, group.nesterov, group.lr_decay,
                    group.initial_accumulator_value, group.max_coeff, group.min_coeff, group.eps_inside_sqrt);
  };
  return options(*this) == options(other);
}

}  // namespace zeropage

namespace zeropage::cpp {
namespace {

using config::OptimizerParams;
using enum config::OptimizerKind;
using Betas = std::pair<double, double>;
using Kinds = std::initializer_list<config::OptimizerKind>;

/// Where OptimizerParams keeps a hyperparameter.
template <class Value>
struct Field {
  Value OptimizerParams::*member;
  Value get(const OptimizerParams& params) const { return params.*member; }
  void set(OptimizerParams& params, const Value& value) const { params.*member = value; }
};

template <>
struct Field<Betas> {
  Betas get(const OptimizerParams& params) const { return {params.beta1, params.beta2}; }
  void set(OptimizerParams& params, const Betas& value) const { std::tie(params.beta1, params.beta2) = value; }
};

/// Calls visit(name, kinds of optimizers that have it, member of ParameterGroup, Field) for every hyperparameter.
template <class Visit>
void each(const Visit& visit) {
  using G = ParameterGroup;
  using P = OptimizerParams;
  visit("lr", Kinds{kAdam, kAdamW, kLion, kAdagrad, kSgd, kLamb}, &G::lr, Field<double>{&P::lr});
  visit("betas", Kinds{kAdam, kAdamW, kLion, kLamb}, &G::betas, Field<Betas>{});
  visit("eps", Kinds{kAdam, kAdamW, kAdagrad, kLamb}, &G::eps, Field<double>{&P::eps});
  visit("weight_decay", Kinds{kAdam, kAdamW, kLion, kAdagrad, kSgd, kLamb}, &G::weight_decay,
        Field<double>{&P::weight_decay});
  visit("bias_correction", Kinds{kAdam, kAdamW, kLamb}, &G::bias_correction, Field<bool>{&P::bias_correction});
  visit("decoupled_weight_decay", Kinds{kAdam, kAdamW}, &G::decoupled_weight_decay, Field<bool>{&P::decoupled_decay});
  visit("momentum", Kinds{kSgd}, &G::momentum, Field<double>{&P::momentum});
  visit("dampening", Kinds{kSgd}, &G::dampening, Field<double>{&P::dampening});
  visit("nesterov", Kinds{kSgd}, &G::nesterov, Field<bool>{&P::nesterov});
  visit("lr_decay", Kinds{kAdagrad}, &G::lr_decay, Field<double>{&P::lr_decay});
  visit("initial_accumulator_value", Kinds{kAdagrad}, &G::initial_accumulator_value,
        Field<double>{&P::initial_accumulator_value});
  visit("max_coeff", Kinds{kLamb}, &G::max_coeff, Field<double>{&P::max_coeff});
  visit("min_coeff", Kinds{kLamb}, &G::min_coeff, Field<double>{&P::min_coeff});
  visit("eps_inside_sqrt", Kinds{kLamb}, &G::eps_inside_sqrt, Field<bool>{&P::eps_inside_sqrt});
}

bool has(Kinds kinds, config::OptimizerKind kind) { return std::find(kinds.begin(), kinds.end(), kind) != kinds.end(); }

}  // namespace

std::vector<OptimizerParams> hyperparameters(const std::vector<ParameterGroup>& groups,
                                             const config::Optimizer& optimizer) {
  std::vector<OptimizerParams> all(groups.size(), optimizer.params);
  for (std::size_t i = 0; i < groups.size(); ++i) {
    each([&](const char* name, Kinds kinds, auto member, const auto& field) {
      const auto& value = groups[i].*member;
      if (!value) return;
      if (!has(kinds, optimizer.kind)) {
        throw ConfigError(fmt::format(
            "parameter group {} has {}, which the configured optimizer does not have: leave it out", i, name));
      }
      field.set(all[i], *value);
    });
    if (all[i].initial_accumulator_value != all[0].initial_accumulator_value) {
      throw ConfigError("parameter groups have different initial_accumulator_value; give all of them the same");
    }
  }
  return all;
}

OptimizerParams params_for_state(const std::vector<OptimizerParams>& groups) {
  return *std::max_element(groups.begin(), groups.end(),
                           [](const auto& a, const auto& b) { return a.momentum < b.momentum; });
}

nlohmann::json hyperparameters_to_json(config::OptimizerKind kind, const OptimizerParams& params) {
  auto out = nlohmann::json::object();
  each([&](const char* name, Kinds kinds, auto, const auto& field) {
    if (has(kinds, kind)) out[name] = field.get(params);
  });
  return out;
}

std::string optimizer_facts(config::OptimizerKind kind, const std::vector<OptimizerParams>& groups) {
  std::string facts;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    facts += fmt::format("parameter group {}: {}\n", i, hyperparameters_to_json(kind, groups[i]).dump());
  }
  return facts;
}

void read_hyperparameters(const nlohmann::json& group, config::OptimizerKind kind, OptimizerParams& params) {
  each([&]<class Value>(const char* name, Kinds kinds, auto, const Field<Value>& field) {
    const auto found = group.find(name);
    if (found == group.end() || !has(kinds, kind)) return;
    try {
      field.set(params, found->template get<Value>());
    } catch (const nlohmann::json::exception&) {
      throw CheckpointError(fmt::format("the checkpoint's hyperparameter {} cannot be used: {}", name, found->dump()));
    }
  });
}

}  // namespace zeropage::cpp
