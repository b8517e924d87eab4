#include "zeropage/planner/recommend.h"

#include <algorithm>

#include <fmt/format.h>

#include "zeropage/planner/memory_model.h"

namespace zeropage::planner {
namespace {

/// Below this share of the device's memory everything "fits as it is": batch and sequence can still grow.
constexpr double kComfortable = 0.7;
constexpr int kRanksMax = 1 << 16;

double gigabytes(double bytes) { return bytes / 1e9; }

/// The share of the device that a variant takes, as text.
std::string load_of(const Request& request, const Variant& variant) {
  return fmt::format("{:.1f} of {:.1f} GB", gigabytes(static_cast<double>(variant.device_bytes)),
                     gigabytes(static_cast<double>(request.hardware->device_bytes)));
}

const Variant& chosen(const Row& row, bool checkpointing) { return checkpointing ? row.checkpointed : row.plain; }

/// The row of a strategy without offload.
std::size_t row_of_stage(const std::vector<Row>& rows, int stage) {
  std::size_t i = 0;
  while (rows[i].strategy.stage != stage || rows[i].strategy.offloads()) ++i;
  return i;
}

std::string reason_without_offload(const Request& request, const Row& row, bool checkpointing) {
  const std::string load = load_of(request, chosen(row, checkpointing));
  const std::string with = checkpointing ? " with activation checkpointing, which is needed" : "";
  switch (row.strategy.stage) {
    case 0: return fmt::format("there is one rank, so nothing can be sharded, and everything fits{} ({})", with, load);
    case 1: return fmt::format("the model fits as it is; stage 1 frees the optimizer's memory at no cost ({})", load);
    case 2:
      return fmt::format(
          "optimizer state and gradients are sharded at the communication of plain data parallelism{} ({})", with,
          load);
    default:
      return fmt::format(
          "stage 2 does not fit; sharding the parameters, too, does{}, for half as much communication again ({})", with,
          load);
  }
}

/// The first choice among stages without offload.
std::optional<Recommendation> choose_on_device(const Request& request, const std::vector<Row>& rows) {
  const auto take = [&](int stage, bool checkpointing) -> Recommendation {
    const std::size_t row = row_of_stage(rows, stage);
    return {row, checkpointing, reason_without_offload(request, rows[row], checkpointing)};
  };
  const auto fits = [&](int stage, bool checkpointing) {
    return chosen(rows[row_of_stage(rows, stage)], checkpointing).fits.value_or(false);
  };
  if (request.world_size() == 1) {
    for (bool checkpointing : {false, true}) {
      if (fits(0, checkpointing)) return take(0, checkpointing);
    }
    return std::nullopt;  // a single rank's shard is the whole page
  }
  const Variant& plain = rows[row_of_stage(rows, 0)].plain;
  if (static_cast<double>(plain.device_bytes) <= kComfortable * static_cast<double>(request.hardware->device_bytes)) {
    return take(1, false);
  }
  for (int stage : {2, 3}) {
    for (bool checkpointing : {false, true}) {
      if (fits(stage, checkpointing)) return take(stage, checkpointing);
    }
  }
  return std::nullopt;
}

std::string reason_with_offload(const Request& request, const Row& row, bool checkpointing) {
  const TimeEstimate& time = *chosen(row, checkpointing).time;
  std::string reason =
      fmt::format("{} too small; with offload ({}) it fits{}, at {:.0f} % of the speed, waiting mostly for: {}",
                  request.world_size() == 1 ? "the device is" : "all devices together are", offload_name(row.strategy),
                  checkpointing ? " with activation checkpointing" : "", 100 * time.efficiency(), time.limit);
  const int ranks = ranks_to_fit(request);
  if (ranks > 0) reason += fmt::format("; {} ranks would do without", ranks);
  if (!row.available)
    reason += "; this version does not have this offload yet, and refuses the configuration with a message";
  return reason;
}

}  // namespace

int ranks_to_fit(const Request& request) {
  Request larger = request;
  for (int ranks = 2; ranks <= kRanksMax; ranks *= 2) {
    if (ranks <= request.world_size()) continue;
    larger.hosts = std::max(1, ranks / request.devices_per_host);
    larger.devices_per_host = ranks / larger.hosts;
    const std::int64_t bytes =
        estimate_memory(larger, {3}).device_without_activations() + activation_bytes(larger, true);
    if (static_cast<double>(bytes) <= kUsable * static_cast<double>(request.hardware->device_bytes)) return ranks;
  }
  return 0;
}

Recommendation recommend(const Request& request, const std::vector<Row>& rows) {
  if (!request.hardware) {
    const int stage = request.world_size() > 1 ? 2 : 0;
    const char* reason =
        stage == 2
            ? "the place to start: it costs no more communication than plain data parallelism; name the devices to "
              "learn what fits"
            : "there is one rank, so nothing can be sharded; name the device to learn what fits";
    return {row_of_stage(rows, stage), false, reason};
  }
  if (const auto choice = choose_on_device(request, rows)) return *choice;
  // Rows are in the order in which offload is worth trying. Those that this version runs are tried first.
  for (bool available : {true, false}) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (!rows[i].strategy.offloads() || rows[i].available != available) continue;
      for (bool checkpointing : {false, true}) {
        if (*chosen(rows[i], checkpointing).fits) {
          return {i, checkpointing, reason_with_offload(request, rows[i], checkpointing)};
        }
      }
    }
  }
  const int ranks = ranks_to_fit(request);
  return {std::nullopt, false,
          "nothing fits" + (ranks > 0 ? fmt::format("; stage 3 on {} ranks with activation checkpointing would", ranks)
                                      : std::string("; shorten the sequence or make the micro batch smaller"))};
}

}  // namespace zeropage::planner
