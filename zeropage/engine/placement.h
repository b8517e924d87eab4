/// \file
/// A stage is a value: which kinds of state are sharded. Everything downstream reads this table and no stage number.
#pragma once

namespace zeropage::engine {

struct Placement {
  bool shard_optimizer = false;
  bool shard_gradients = false;
  bool shard_parameters = false;
};

/// stage 0: nothing (data parallel); 1: optimizer state; 2: and gradients; 3: and parameters.
constexpr Placement placement_of_stage(int stage) { return {stage >= 1, stage >= 2, stage >= 3}; }

}  // namespace zeropage::engine
