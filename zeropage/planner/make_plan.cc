#include "zeropage/planner/make_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include <nlohmann/json.hpp>

#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"
#include "zeropage/planner/memory_model.h"
#include "zeropage/planner/recommend.h"
#include "zeropage/planner/time_model.h"

namespace zeropage::planner {
namespace {

constexpr std::int64_t kMaxRequested = 1'000'000'000;

constexpr Strategy kStrategies[] = {
    {0},
    {1},
    {1, StateMemory::kHost},
    {2},
    {2, StateMemory::kHost},
    {3},
    {3, StateMemory::kHost},
    {3, StateMemory::kHost, StateMemory::kHost},
    {3, StateMemory::kDisk, StateMemory::kHost},
    {3, StateMemory::kDisk, StateMemory::kDisk},
};

void check_groups(const Request& request) {
  const int ranks = request.shard_ranks;
  if (ranks == 0) return;
  if (ranks < 2 || request.devices_per_host % ranks != 0) {
    throw ConfigError(
        fmt::format("plan: shard_ranks: expected 0, or a divisor from 2 on of the {} devices of a host, got {}",
                    request.devices_per_host, ranks));
  }
  if (request.second_shard_ranks > 1 || request.quantized_gradients) {
    throw ConfigError("plan: shard_ranks does not go with second shards or with gradients in 4 bits");
  }
}

void check(const Request& request) {
  const auto positive = [](const char* what, std::int64_t value) {
    if (value < 1 || value > kMaxRequested) {
      throw ConfigError(fmt::format("plan: {}: expected a number from 1 to {}, got {}", what, kMaxRequested, value));
    }
  };
  positive("devices per host", request.devices_per_host);
  positive("hosts", request.hosts);
  positive("ranks", static_cast<std::int64_t>(request.devices_per_host) * request.hosts);
  positive("micro batch", request.micro_batch);
  positive("accumulation steps", request.accumulation_steps);
  positive("sequence", request.sequence);
  positive("ranks with second shards", request.second_shard_ranks);
  if (request.devices_per_host % request.second_shard_ranks != 0) {
    throw ConfigError(
        fmt::format("plan: zero_hpz_partition_size: expected a divisor of the {} devices of a host, got {}",
                    request.devices_per_host, request.second_shard_ranks));
  }
  check_groups(request);
}

config::Precision parse_precision(const std::string& text) {
  if (text == "bf16") return config::Precision::kBf16;
  if (text == "fp16") return config::Precision::kFp16;
  if (text == "fp32") return config::Precision::kFp32;
  throw ConfigError(fmt::format("precision: expected bf16, fp16 or fp32, got {}", json::quote(text)));
}

/// Whether the bytes of a rank fit on its device, and those of a host's ranks in the host's memory and on its disks.
bool fits(const Request& request, const MemoryEstimate& memory, std::int64_t device_bytes) {
  const Hardware& hardware = *request.hardware;
  const auto room = [](std::int64_t bytes) { return kUsable * static_cast<double>(bytes); };
  const double ranks = request.devices_per_host;
  return static_cast<double>(device_bytes) <= room(hardware.device_bytes) &&
         ranks * static_cast<double>(memory.host) <= room(hardware.host_bytes) &&
         ranks * static_cast<double>(memory.disk) <= room(hardware.disk_bytes);
}

Variant variant_of(const Request& request, const Strategy& strategy, const MemoryEstimate& memory, bool checkpointing) {
  Variant variant;
  variant.activations = activation_bytes(request, checkpointing);
  const std::int64_t update = strategy.optimizer == StateMemory::kDevice ? memory.update : 0;
  variant.device_bytes = memory.state.total() + std::max(memory.frames + memory.buckets + variant.activations, update);
  if (request.hardware) {
    variant.fits = fits(request, memory, variant.device_bytes);
    variant.time = estimate_time(request, strategy, checkpointing);
  }
  return variant;
}

bool is_available(const std::string& text, int world_size) {
  try {
    config::Config::from_json(text, world_size, "plan");
    return true;
  } catch (const ConfigError&) {
    return false;
  }
}

const char* device_word(StateMemory memory) { return memory == StateMemory::kHost ? "cpu" : "nvme"; }

}  // namespace

Request request_of(Model model, const PlanOptions& options) {
  Request request;
  request.model = std::move(model);
  request.devices_per_host = options.num_gpus;
  request.hosts = options.num_nodes;
  if (!options.device.empty()) request.hardware = read_hardware(options.device);
  for (const auto& [name, value] : options.figures) {
    if (!request.hardware) {
      throw ConfigError(fmt::format(
          "plan: {} replaces a figure of a device, but there is no device: name one (H100, ...), or a file of figures",
          name));
    }
    set_figure(*request.hardware, name, value);
  }
  request.optimizer = planned_optimizer(options.optimizer, options.optimizer_bytes);
  request.precision = parse_precision(options.precision);
  request.micro_batch = options.micro_batch;
  request.accumulation_steps = options.accumulation_steps;
  request.sequence = options.sequence;
  request.quantized_weights = options.quantized_weights;
  request.quantized_gradients = options.quantized_gradients;
  request.second_shard_ranks = options.hpz_partition_size;
  request.shard_ranks = options.shard_ranks;
  return request;
}

std::string offload_name(const Strategy& strategy) {
  const auto word = [](StateMemory memory) { return memory == StateMemory::kHost ? "host" : "disk"; };
  std::string name;
  if (strategy.optimizer != StateMemory::kDevice) name += fmt::format("optimizer: {}", word(strategy.optimizer));
  if (strategy.parameters != StateMemory::kDevice) name += fmt::format(", parameters: {}", word(strategy.parameters));
  return name.empty() ? "none" : name;
}

Plan make_plan(const Request& request) {
  check(request);
  Plan plan;
  plan.request = request;
  for (const Strategy& strategy : kStrategies) {
    Row row;
    row.strategy = strategy;
    row.memory = estimate_memory(request, strategy);
    row.plain = variant_of(request, strategy, row.memory, false);
    row.checkpointed = variant_of(request, strategy, row.memory, true);
    row.config = config_text(request, strategy);
    row.available = is_available(row.config, request.world_size());
    plan.rows.push_back(std::move(row));
  }
  plan.recommendation = recommend(request, plan.rows);
  return plan;
}

std::string config_text(const Request& request, const Strategy& strategy) {
  using Json = nlohmann::ordered_json;
  Json zero{{"stage", strategy.stage}};
  const auto add_offload = [&](const char* key, StateMemory memory) {
    if (memory == StateMemory::kDevice) return;
    zero[key] = {{"device", device_word(memory)}};
    if (memory == StateMemory::kDisk) zero[key]["nvme_path"] = "/local_nvme";
  };
  if (request.quantized_weights && strategy.stage == 3) zero["zero_quantized_weights"] = true;
  if (request.quantized_gradients && strategy.stage > 0) zero["zero_quantized_gradients"] = true;
  if (const int ranks = request.second_shards(strategy); ranks > 1) zero["zero_hpz_partition_size"] = ranks;
  add_offload("offload_optimizer", strategy.optimizer);
  add_offload("offload_param", strategy.parameters);
  Json document{{"train_micro_batch_size_per_gpu", request.micro_batch},
                {"gradient_accumulation_steps", request.accumulation_steps}};
  if (request.precision == config::Precision::kBf16) document["bf16"] = {{"enabled", true}};
  if (request.precision == config::Precision::kFp16) document["fp16"] = {{"enabled", true}};
  document["zero_optimization"] = std::move(zero);
  if (strategy.optimizer == StateMemory::kHost && request.hardware && !request.optimizer.by_torch) {
    document["zeropage"] = {{"offloaded_update", is_updated_on_device(request, strategy) ? "device" : "host"}};
  }
  if (request.in_groups(strategy.stage)) document["zeropage"]["shard_ranks"] = request.shard_ranks;
  if (request.optimizer.type == "whole") {
    document["zeropage"]["optimizer_sees"] = "parameters";
    return document.dump(2) + "\n";
  }
  Json params{{"lr", request.optimizer.is_muon() ? 0.02 : 1e-4}};
  if (request.optimizer.is_muon()) params["adam_lr"] = 3e-4;
  if (request.optimizer.type == "SGD") params["momentum"] = 0.9;
  if (request.optimizer.type != "Adagrad" && request.optimizer.type != "SGD") params["weight_decay"] = 0.01;
  document["optimizer"] = {{"type", request.optimizer.type}, {"params", std::move(params)}};
  return document.dump(2) + "\n";
}

}  // namespace zeropage::planner
