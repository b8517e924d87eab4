/// \file
/// `zeropage plan` for C++ programs: memory and time of a model at every stage, and a recommendation. (zeropage::plan
/// is the namespace of the formulas.)
#pragma once

#include <string>

#include "zeropage/planner/plan_options.h"

namespace torch::nn {
class Module;
}

namespace zeropage {

struct TrainingPlan {
  std::string text;    ///< tables and the recommendation, for people
  std::string json;    ///< the same figures, for programs
  std::string config;  ///< the recommended ds_config.json; empty when nothing fits
  std::string reason;  ///< the reason of the recommendation
};

/// model: a count ("7B"), a safetensors file or index, a config.json or its folder. Cost: milliseconds. Errors:
/// ConfigError, IoError.
TrainingPlan make_plan(const std::string& model, const PlanOptions& options = {});

/// The same for a model that exists, whose parameters may be on the device "meta". Every parameter counts once.
TrainingPlan make_plan(const torch::nn::Module& model, const PlanOptions& options = {});

}  // namespace zeropage
