/// \file
/// Hyperparameters of parameter groups, under the names that torch.optim gives them.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <vector>

#include "zeropage/config/config.h"
#include "zeropage/cpp/options.h"

namespace zeropage::cpp {

/// The hyperparameters of each group: its own, else those of `optimizer`. Errors: ConfigError when a group has one that
/// the optimizer does not, or when groups start with different sums of squares.
std::vector<config::OptimizerParams> hyperparameters(const std::vector<ParameterGroup>& groups,
                                                     const config::Optimizer& optimizer);

/// Those that say how much state the groups need and what it starts with.
config::OptimizerParams params_for_state(const std::vector<config::OptimizerParams>& groups);

/// Name and value of each of the optimizer's hyperparameters; the betas are an array of two.
nlohmann::json hyperparameters_to_json(config::OptimizerKind kind, const config::OptimizerParams& params);

/// What must be the same on all ranks, for engine::require_same_everywhere: a line per group.
std::string optimizer_facts(config::OptimizerKind kind, const std::vector<config::OptimizerParams>& groups);

/// Their names alone.
std::set<std::string> hyperparameter_names(config::OptimizerKind kind);

/// What a group of a checkpoint asks of the update, and an optimizer whose hyperparameters are `known` cannot do
/// ("maximize"). Empty: nothing. Names that only say how an update is computed ("foreach"), and values that are no
/// switches, ask nothing.
std::string cannot_follow(const nlohmann::json& group, const std::set<std::string>& known);

/// The other way; names that are not there, or unknown, change nothing. Errors: CheckpointError for values of another
/// type.
void read_hyperparameters(const nlohmann::json& group, config::OptimizerKind kind, config::OptimizerParams& params);

}  // namespace zeropage::cpp
