/// \file
/// The kinds of state that are sharded at each stage. The engine and its parts (pager, reducer, update) use this table
/// and no stage number; formulas and plans, which compare stages, use the number. Offloaded state is in the memories
/// below.
#pragma once

#include <optional>

#include "zeropage/config/config.h"
#include "zeropage/memory/device_buffer.h"

namespace zeropage::engine {

struct Sharding {
  bool shard_optimizer = false;
  bool shard_gradients = false;
  bool shard_parameters = false;
};

/// stage 0: nothing (data parallel); 1: optimizer state; 2: and gradients; 3: and parameters.
constexpr Sharding sharding_of_stage(int stage) { return {stage >= 1, stage >= 2, stage >= 3}; }

/// The host's memory for offloaded optimizer state and gradients of `config`; page-locked if that helps a device.
inline memory::MemoryPlace optimizer_host(const config::Config& config, c10::Device device) {
  return {c10::kCPU, Tier::kHost, config.zero.offload.pin_optimizer && !device.is_cpu()};
}

/// The same for parameter shards; nullopt: they stay on the device.
inline std::optional<memory::MemoryPlace> parameter_host(const config::Config& config, c10::Device device) {
  if (config.zero.offload.parameters == config::OffloadDevice::kNone) return std::nullopt;
  return memory::MemoryPlace(c10::kCPU, Tier::kHost, config.zero.offload.pin_parameters && !device.is_cpu());
}

}  // namespace zeropage::engine
