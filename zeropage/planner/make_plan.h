/// \file
/// The memory of a model at every stage with every kind of offload, the time of a step, and a recommendation.
///
///   1. Every row is a Strategy: a stage, and the memories of optimizer state and parameters.
///   2. `model_state_bytes` (state) and memory_model.h (frames, buckets, activations) compute the bytes by kind.
///   3. If the hardware is known, time_model.h computes the time, and each row fits or does not fit.
///   4. Each row's configuration is written and read by config::Config. A row that it refuses is not in this version
///      yet.
///   5. One row is recommended: stage 1 when everything fits easily; otherwise stage 2; stage 3 when the parameters do
///      not fit; offload only when nothing else fits. A row that this version does not run is never preferred to one
///      that it runs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "zeropage/config/config.h"
#include "zeropage/formula/model_state.h"
#include "zeropage/planner/hardware.h"
#include "zeropage/planner/model.h"
#include "zeropage/planner/plan_options.h"
#include "zeropage/planner/planned_optimizer.h"

namespace zeropage::planner {

/// The memory of a kind of state while it is not in use.
enum class StateMemory { kDevice, kHost, kDisk };

struct Strategy {
  int stage = 0;
  StateMemory optimizer = StateMemory::kDevice;
  StateMemory parameters = StateMemory::kDevice;

  bool offloads() const { return optimizer != StateMemory::kDevice || parameters != StateMemory::kDevice; }
};

struct Request {
  Model model;
  int devices_per_host = 1;
  int hosts = 1;
  std::optional<Hardware> hardware;
  PlannedOptimizer optimizer = {};
  config::Precision precision = config::Precision::kBf16;
  std::int64_t micro_batch = 1;
  std::int64_t accumulation_steps = 1;
  std::int64_t sequence = 2048;
  bool quantized_weights = false;    ///< gathered in 8 bits, at stage 3
  bool quantized_gradients = false;  ///< reduced in 4 bits, from stage 1 on
  int second_shard_ranks = 1;        ///< nearby ranks that keep each gathered page once more (zero_hpz_partition_size)

  int shard_ranks = 0;  ///< ranks that state is divided over (zeropage.shard_ranks); 0: all of them

  /// Whether state is divided over groups of ranks, at stages 1 to 3.
  bool in_groups(int stage) const { return stage > 0 && shard_ranks > 0 && shard_ranks < world_size(); }
  int state_ranks(int stage) const { return in_groups(stage) ? shard_ranks : world_size(); }

  bool gathers_in_8_bits(int stage) const { return quantized_weights && stage == 3 && world_size() > 1; }
  bool reduces_in_4_bits(int stage) const { return quantized_gradients && stage > 0 && world_size() > 1; }

  /// Of the pages of a row: `second_shard_ranks` at stage 3 with parameters on the device, 1 elsewhere. CPU ranks of
  /// one host have none: they read each other's shards in shared memory.
  int second_shards(const Strategy& strategy) const {
    const bool gathers = strategy.stage == 3 && strategy.parameters == StateMemory::kDevice && world_size() > 1;
    return gathers && !shares_memory() ? second_shard_ranks : 1;
  }

  /// Whether the devices are CPU cores of one host. False where the device is unknown.
  bool shares_memory() const { return hosts == 1 && hardware && hardware->is_cpu; }

  int world_size() const { return devices_per_host * hosts; }
};

/// Bytes of one rank, by kind; host and disk are this rank's share there.
struct MemoryEstimate {
  formula::StateBytes state;  ///< on the device
  std::int64_t frames = 0;
  std::int64_t buckets = 0;
  std::int64_t update = 0;  ///< copies for an optimizer of PyTorch during its update, instead of frames, buckets and
                            ///< activations; of host where its masters are not on the device
  std::int64_t host = 0;
  std::int64_t undo_log = 0;  ///< part of host: the default of engines on a GPU
  std::int64_t disk = 0;

  std::int64_t device_without_activations() const { return state.total() + frames + buckets; }
};

/// Seconds of one optimizer step.
struct TimeEstimate {
  double compute_s = 0;
  double step_s = 0;
  std::string limit;  ///< the part that takes most of the step

  double efficiency() const { return step_s > 0 ? compute_s / step_s : 0; }
};

/// A row with or without activation checkpointing.
struct Variant {
  std::int64_t activations = 0;
  std::int64_t device_bytes = 0;     ///< all kinds together
  std::optional<bool> fits;          ///< absent: hardware unknown
  std::optional<TimeEstimate> time;  ///< absent: hardware unknown
};

struct Row {
  Strategy strategy;
  MemoryEstimate memory;
  Variant plain;
  Variant checkpointed;
  bool available = false;  ///< this version runs it
  std::string config;      ///< its ds_config.json
};

struct Recommendation {
  std::optional<std::size_t> row;  ///< index into Plan::rows; empty: nothing fits
  bool checkpointing = false;
  std::string reason;
};

struct Plan {
  Request request;
  std::vector<Row> rows;
  Recommendation recommendation;
};

/// The request for a model with a user's options. Errors: ConfigError for unknown names, and for figures without a
/// device; IoError when `device` is a file that cannot be read.
Request request_of(Model model, const PlanOptions& options);

/// "none", "optimizer: host", "optimizer: disk, parameters: host", ...
std::string offload_name(const Strategy& strategy);

/// Cost: milliseconds. Errors: ConfigError for counts below 1, sizes beyond 63 bits, or second_shard_ranks or
/// shard_ranks that do not divide the devices of a host, or do not go with the other options.
Plan make_plan(const Request& request);

/// The plan for people: a heading, the 16-byte table, rows, notes, the recommendation. Sizes in GB = 10^9 bytes.
std::string format_plan(const Plan& plan);

/// The plan for programs, one JSON document.
std::string plan_json(const Plan& plan);

/// The configuration of a row, as --write writes it for the recommendation.
std::string config_text(const Request& request, const Strategy& strategy);

}  // namespace zeropage::planner
