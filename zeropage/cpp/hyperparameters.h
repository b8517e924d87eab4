/// \file
/// Hyperparameters of parameter groups, with the names of torch.optim.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <vector>

#include "zeropage/config/config.h"
#include "zeropage/cpp/options.h"

namespace zeropage::cpp {

/// The hyperparameters of each group: its own, or those of `optimizer`. Errors: ConfigError when a group has one that
/// the optimizer does not have.
std::vector<config::OptimizerParams> hyperparameters(const std::vector<ParameterGroup>& groups,
                                                     const config::Optimizer& optimizer);

/// Name and value of each of the optimizer's hyperparameters; the betas are an array of two.
nlohmann::json hyperparameters_to_json(config::OptimizerKind kind, const config::OptimizerParams& params);

/// Facts that must be the same on all ranks, for engine::require_same_everywhere: one line per group.
std::string optimizer_facts(config::OptimizerKind kind, const std::vector<config::OptimizerParams>& groups);

/// The names of the hyperparameters.
std::set<std::string> hyperparameter_names(config::OptimizerKind kind);

/// A hyperparameter of a checkpoint's group that changes the update and that an optimizer with the hyperparameters
/// `known` does not support ("maximize"). Empty: none. Names that only choose an implementation ("foreach"), and values
/// that are no flags, are ignored.
std::string cannot_follow(const nlohmann::json& group, const std::set<std::string>& known);

/// Sets hyperparameters from JSON; missing and unknown names change nothing. Errors: CheckpointError for values of
/// another type.
void read_hyperparameters(const nlohmann::json& group, config::OptimizerKind kind, config::OptimizerParams& params);

}  // namespace zeropage::cpp
