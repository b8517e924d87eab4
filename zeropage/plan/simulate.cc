#include "zeropage/plan/simulate.h"

#include <fmt/format.h>

#include <algorithm>

#include "zeropage/base/error.h"

namespace zeropage::plan {
namespace {

std::vector<int> hosts_up_to(int largest) {
  std::vector<int> counts;
  for (int hosts = 1; hosts < largest; hosts *= 2) counts.push_back(hosts);
  counts.push_back(largest);
  return counts;
}

ScalePoint point_of(const Request& request) {
  const Plan plan = make_plan(request);
  ScalePoint point;
  point.hosts = request.hosts;
  point.ranks = request.world_size();
  point.samples_per_step = request.micro_batch * request.accumulation_steps * request.world_size();
  if (!plan.recommendation.row) return point;
  const Row& row = plan.rows[*plan.recommendation.row];
  point.placement = row.placement;
  point.available = row.available;
  point.checkpointing = plan.recommendation.checkpointing;
  point.time = *(point.checkpointing ? row.checkpointed : row.plain).time;
  return point;
}

std::string stage_of(const ScalePoint& point) {
  const Placement& placement = *point.placement;
  std::string text = std::to_string(placement.stage);
  if (point.checkpointing) text += ", ckpt";
  if (placement.offloads()) text += ", " + offload_name(placement);
  return point.available ? text : text + " (not in this version)";
}

}  // namespace

std::vector<ScalePoint> simulate(const Request& request, std::optional<std::int64_t> global_batch) {
  if (!request.hardware) throw ConfigError("simulate: expected a kind of device, got none; say --device H100");
  std::vector<ScalePoint> points;
  for (const int hosts : hosts_up_to(request.hosts)) {
    Request scaled = request;
    scaled.hosts = hosts;
    if (global_batch) {
      const std::int64_t per_round = request.micro_batch * scaled.world_size();
      if (*global_batch < per_round || *global_batch % per_round != 0) continue;
      scaled.accumulation_steps = *global_batch / per_round;
    }
    points.push_back(point_of(scaled));
  }
  if (points.empty()) {
    throw ConfigError(
        fmt::format("simulate: --global_batch: expected a multiple of {} devices x micro batch {}, got {}",
                    request.devices_per_host, request.micro_batch, *global_batch));
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
    if (!point.placement) {
      text += "nothing fits\n";
      continue;
    }
    text += fmt::format("{:>8.2f} s {:>13.0f} {:>16.0f} {:>6.0f} %  {}; waits mostly for: {}\n", point.time.step_s,
                        point.samples_per_s() * static_cast<double>(request.sequence),
                        point.time.efficiency() * flops / 1e12, 100 * rate_of(point) / best_rate, stage_of(point),
                        point.time.limit);
  }
  return text +
         "\nScaling: samples per second and rank, against the best row. Times are bounds: bytes on links "
         "and operations,\n"
         "without the latency of messages (docs/plan.md).\n";
}

}  // namespace zeropage::plan
