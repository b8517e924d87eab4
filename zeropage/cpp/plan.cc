#include "zeropage/cpp/plan.h"

#include <torch/nn/module.h>

#include <set>

#include "zeropage/base/error.h"
#include "zeropage/planner/plan.h"

namespace zeropage {
namespace {

TrainingPlan plan_for(planner::Model model, const PlanOptions& options) {
  planner::Request request;
  request.model = std::move(model);
  request.devices_per_host = options.num_gpus;
  request.hosts = options.num_nodes;
  if (!options.device.empty()) request.hardware = planner::read_hardware(options.device);
  if (!options.figures.empty() && !request.hardware) {
    throw ConfigError("make_plan: figures replace those of a device: name one, as device = \"H100\"");
  }
  for (const auto& [name, value] : options.figures) planner::set_figure(*request.hardware, name, value);
  request.optimizer = planner::planned_optimizer(options.optimizer, options.optimizer_bytes);
  request.precision = planner::parse_precision(options.precision);
  request.micro_batch = options.micro_batch;
  request.accumulation_steps = options.accumulation_steps;
  request.sequence = options.sequence;
  request.quantized_weights = options.quantized_weights;
  request.quantized_gradients = options.quantized_gradients;
  request.second_shard_ranks = options.hpz_partition_size;
  const planner::Plan made = planner::make_plan(request);
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
