#include "zeropage/cpp/plan.h"

#include <torch/nn/module.h>

#include <set>
#include <utility>

#include "zeropage/planner/make_plan.h"

namespace zeropage {
namespace {

TrainingPlan plan_for(planner::Model model, const PlanOptions& options) {
  const planner::Plan made = planner::make_plan(planner::request_of(std::move(model), options));
  const auto row = made.recommendation.row;
  return {planner::format_plan(made), planner::plan_json(made), row ? made.rows[*row].config : "",
          made.recommendation.reason};
}

}  // namespace

TrainingPlan make_plan(const std::string& model, const PlanOptions& options) {
  return plan_for(planner::read_model(model), options);
}

TrainingPlan make_plan(const torch::nn::Module& model, const PlanOptions& options) {
  std::vector<std::int64_t> numels;
  std::vector<bool> trainable;
  std::vector<bool> muon;
  std::set<const void*> seen;
  for (const auto& named : model.named_parameters()) {
    const at::Tensor& parameter = named.value();
    if (!seen.insert(parameter.unsafeGetTensorImpl()).second) continue;
    numels.push_back(parameter.numel());
    trainable.push_back(parameter.requires_grad());
    muon.push_back(planner::takes_muon(named.key(), parameter.dim()));
  }
  return plan_for(planner::model_of_parameters("module", numels, trainable, muon), options);
}

}  // namespace zeropage
