/// \file
/// A plan over growing numbers of hosts: what is recommended at each, how fast it can be, and how well it scales.
///
///   weak scaling    every rank keeps its micro batches; the step's batch grows with the ranks
///   strong scaling  the step's batch stays; ranks share it, so that each has fewer micro batches
///
/// Time is that of time_model.h: bytes on the links inside a host and between hosts, without the latency of messages. It is a bound:
/// thousands of ranks that exchange small pages will be slower.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "zeropage/plan/plan.h"

namespace zeropage::plan {

struct ScalePoint {
  int hosts = 0;
  int ranks = 0;
  std::optional<Placement> placement;  ///< absent: nothing fits
  bool checkpointing = false;
  bool available = false;  ///< this version runs it
  TimeEstimate time;
  std::int64_t samples_per_step = 0;

  double samples_per_s() const { return time.step_s > 0 ? static_cast<double>(samples_per_step) / time.step_s : 0; }
};

/// Hosts 1, 2, 4, ... up to request.hosts, and that itself. global_batch: samples of a step for strong scaling; numbers of hosts that do not
/// divide it into micro batches are left out. Errors: ConfigError without hardware, when no number of hosts divides the batch, and those
/// of make_plan. Cost: milliseconds.
std::vector<ScalePoint> simulate(const Request& request, std::optional<std::int64_t> global_batch);

/// The points for people.
std::string format_scaling(const Request& request, const std::vector<ScalePoint>& points);

}  // namespace zeropage::plan
