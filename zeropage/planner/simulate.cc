#include "zeropage/planner/simulate.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "zeropage/base/error.h"

namespace zeropage::planner {
namespace {

std::vector<int> counts_up_to(int largest) {
  std::vector<int> counts;
  for (int count = 1; count < largest; count *= 2) counts.push_back(count);
  counts.push_back(largest);
  return counts;
}

/// The plan's recommendation. With `stage`: the row of this stage without offload, if it fits, preferably without
/// checkpointing.
Recommendation choose(const Plan& plan, std::optional<int> stage) {
  if (!stage) return plan.recommendation;
  Recommendation choice;
  for (std::size_t i = 0; i < plan.rows.size() && !choice.row; ++i) {
    const Row& row = plan.rows[i];
    if (row.strategy.stage != *stage || row.strategy.offloads() || !*row.checkpointed.fits) continue;
    choice.row = i;
    choice.checkpointing = !*row.plain.fits;
  }
  return choice;
}

ScalePoint point_of(const Request& request, std::optional<int> stage) {
  const Plan plan = make_plan(request);
  const Recommendation choice = choose(plan, stage);
  ScalePoint point;
  point.hosts = request.hosts;
  point.ranks = request.world_size();
  point.samples_per_step = request.micro_batch * request.accumulation_steps * request.world_size();
  if (!choice.row) return point;
  const Row& row = plan.rows[*choice.row];
  point.strategy = row.strategy;
  point.available = row.available;
  point.checkpointing = choice.checkpointing;
  point.time = *(point.checkpointing ? row.checkpointed : row.plain).time;
  return point;
}

std::string stage_of(const ScalePoint& point) {
  const Strategy& strategy = *point.strategy;
  std::string text = std::to_string(strategy.stage);
  if (point.checkpointing) text += ", ckpt";
  if (strategy.offloads()) text += ", " + offload_name(strategy);
  return point.available ? text : text + " (not in this version)";
}

}  // namespace

std::vector<ScalePoint> simulate(const Request& request, const Scaling& scaling) {
  if (!request.hardware) throw ConfigError("simulate: expected a kind of device, got none; say --device H100");
  if (scaling.stage && (*scaling.stage < 0 || *scaling.stage > 3)) {
    throw ConfigError(fmt::format("simulate: stage: expected 0, 1, 2 or 3, got {}", *scaling.stage));
  }
  std::vector<ScalePoint> points;
  const bool inside_host = request.hosts == 1;
  for (const int count : counts_up_to(inside_host ? request.devices_per_host : request.hosts)) {
    Request scaled = request;
    (inside_host ? scaled.devices_per_host : scaled.hosts) = count;
    if (scaling.global_batch) {
      const std::int64_t per_round = request.micro_batch * scaled.world_size();
      if (*scaling.global_batch < per_round || *scaling.global_batch % per_round != 0) continue;
      scaled.accumulation_steps = *scaling.global_batch / per_round;
    }
    points.push_back(point_of(scaled, scaling.stage));
  }
  if (points.empty()) {
    throw ConfigError(
        fmt::format("simulate: --global_batch: expected a multiple of {} devices x micro batch {}, got {}",
                    request.devices_per_host, request.micro_batch, *scaling.global_batch));
  }
  return points;
}

std::string format_scaling(const Request& request, const std::vector<ScalePoint>& points) {
  const double flops = request.hardware->flops;
  std::string text = fmt::format("{}: {} parameters on hosts of {} {}\n\n", request.model.name,
                                 request.model.total_numel, request.devices_per_host, request.hardware->name);
  text += fmt::format("{:>6} {:>7} {:>9} {:>10} {:>13} {:>16} {:>8}  {}\n", "hosts", "ranks", "batch", "step",
                      "tokens/s", "TFLOP/s a device", "scaling", "stage");
  const auto rate_of = [](const ScalePoint& point) { return point.samples_per_s() / point.ranks; };
  const double best_rate = rate_of(*std::ranges::max_element(points, {}, rate_of));
  for (const ScalePoint& point : points) {
    text += fmt::format("{:>6} {:>7} {:>9} ", point.hosts, point.ranks, point.samples_per_step);
    if (!point.strategy) {
      text += "nothing fits\n";
      continue;
    }
    text += fmt::format("{:>8.2f} s {:>13.0f} {:>16.0f} {:>6.0f} %  {}; waits mostly for: {}\n", point.time.step_s,
                        point.samples_per_s() * static_cast<double>(request.sequence),
                        point.time.efficiency() * flops / 1e12, 100 * rate_of(point) / best_rate, stage_of(point),
                        point.time.limit);
  }
  return text +
         "\nScaling: samples per second and rank, against the best row. Times are bounds: operations, "
         "and bytes and\n"
         "messages on the links (docs/plan.md).\n";
}

std::string scaling_json(const Request& request, const std::vector<ScalePoint>& points) {
  using Json = nlohmann::ordered_json;
  Json json{{"model", request.model.name}, {"device", request.hardware->name}, {"points", Json::array()}};
  for (const ScalePoint& point : points) {
    Json one{{"hosts", point.hosts}, {"ranks", point.ranks}, {"samples_per_step", point.samples_per_step}};
    if (point.strategy) {
      one["stage"] = point.strategy->stage;
      one["offload"] = offload_name(*point.strategy);
      one["checkpointing"] = point.checkpointing;
      one["step_s"] = point.time.step_s;
      one["efficiency"] = point.time.efficiency();
      one["limited_by"] = point.time.limit;
    }
    json["points"].push_back(std::move(one));
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace zeropage::planner
