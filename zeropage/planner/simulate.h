/// \file
/// A plan for increasing numbers of hosts: for each the recommended row, its speed, and how well it scales.
///
///   weak scaling    every rank has the same micro batches; the step's batch grows with the ranks
///   strong scaling  the step's batch stays the same; ranks share it, so each has fewer micro batches
///
/// Times are from time_model.h: bytes and messages on the links inside a host and between hosts.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "zeropage/planner/make_plan.h"

namespace zeropage::planner {

struct ScalePoint {
  int hosts = 0;
  int ranks = 0;
  std::optional<Strategy> strategy;  ///< absent: nothing fits
  bool checkpointing = false;
  bool available = false;  ///< this version runs it
  TimeEstimate time;
  std::int64_t samples_per_step = 0;

  double samples_per_s() const { return time.step_s > 0 ? static_cast<double>(samples_per_step) / time.step_s : 0; }
};

struct Scaling {
  std::optional<std::int64_t> global_batch = {};  ///< samples of a step for strong scaling
  std::optional<int> stage = {};                  ///< absent: what is recommended at each point
};

/// One point for 1, 2, 4, ... hosts up to request.hosts, and for request.hosts. With one host: 1, 2, 4, ... devices.
/// Numbers of ranks that do not divide the global batch into micro batches are left out. Errors: ConfigError without
/// hardware, for a stage outside 0-3, when no number of ranks divides the batch, and those of make_plan. Cost:
/// milliseconds.
std::vector<ScalePoint> simulate(const Request& request, const Scaling& scaling);

/// The points for people.
std::string format_scaling(const Request& request, const std::vector<ScalePoint>& points);

/// The points for programs, one JSON document.
std::string scaling_json(const Request& request, const std::vector<ScalePoint>& points);

}  // namespace zeropage::planner
