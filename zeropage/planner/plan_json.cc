#include <nlohmann/json.hpp>

#include "zeropage/planner/make_plan.h"

namespace zeropage::planner {
namespace {

using OrderedJson = nlohmann::ordered_json;

OrderedJson variant_json(const Variant& variant) {
  OrderedJson json{{"activations_bytes", variant.activations}, {"device_bytes", variant.device_bytes}};
  if (variant.fits) json["fits"] = *variant.fits;
  if (variant.time) {
    json["step_s"] = variant.time->step_s;
    json["compute_s"] = variant.time->compute_s;
    json["efficiency"] = variant.time->efficiency();
    json["limited_by"] = variant.time->limit;
  }
  return json;
}

OrderedJson row_json(const Row& row) {
  const MemoryEstimate& memory = row.memory;
  return {{"stage", row.strategy.stage},
          {"offload", offload_name(row.strategy)},
          {"available", row.available},
          {"parameters_bytes", memory.state.parameters},
          {"gradients_bytes", memory.state.gradients},
          {"optimizer_bytes", memory.state.optimizer},
          {"frames_bytes", memory.frames},
          {"buckets_bytes", memory.buckets},
          {"update_bytes", memory.update},
          {"host_bytes", memory.host},
          {"undo_log_bytes", memory.undo_log},
          {"disk_bytes", memory.disk},
          {"plain", variant_json(row.plain)},
          {"checkpointed", variant_json(row.checkpointed)},
          {"config", OrderedJson::parse(row.config)}};
}

}  // namespace

std::string plan_json(const Plan& plan) {
  const Request& request = plan.request;
  const Model& model = request.model;
  OrderedJson json{{"model",
                    {{"name", model.name},
                     {"parameters", model.total_numel},
                     {"trainable", model.trainable_numel},
                     {"active", model.active_numel},
                     {"muon", model.muon_numel},
                     {"layers", model.shape.layers},
                     {"hidden", model.shape.hidden},
                     {"vocabulary", model.shape.vocabulary},
                     {"shape_guessed", model.shape.guessed}}},
                   {"devices_per_host", request.devices_per_host},
                   {"hosts", request.hosts},
                   {"device", request.hardware ? OrderedJson(request.hardware->name) : OrderedJson()},
                   {"optimizer", request.optimizer.type},
                   {"micro_batch", request.micro_batch},
                   {"accumulation_steps", request.accumulation_steps},
                   {"sequence", request.sequence},
                   {"rows", OrderedJson::array()}};
  for (const Row& row : plan.rows) json["rows"].push_back(row_json(row));
  const Recommendation& choice = plan.recommendation;
  json["recommendation"] = {{"row", choice.row ? OrderedJson(*choice.row) : OrderedJson()},
                            {"checkpointing", choice.checkpointing},
                            {"reason", choice.reason}};
  return json.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

}  // namespace zeropage::planner
