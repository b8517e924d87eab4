/// \file
/// The optimizer of a plan: the state that it keeps, and whether the engine or PyTorch runs its update.
///
///   by the engine   k fp32 values per trained element, and a master of 16-bit parameters (formula/model_state.h)
///   by PyTorch      the engine keeps the master; the optimizer keeps its own state of the parameters that it updates
///                   on this rank: all at stage 0, else those that the rank owns, about as many elements on each. Muon:
///                   4 bytes for each element of its half, 8 for AdamW's. During the update it also has a copy of the
///                   values, 4 bytes per element, and 4 more for gradients that are not kept in fp32
///                   (engine/client_values.h). Its state is where the masters are: in host memory, or on the drive.
///                   From there Muon reads one parameter's at a time; other objects read all of it for the update.
#pragma once

#include <cstdint>
#include <string>

#include "zeropage/config/config.h"
#include "zeropage/planner/model.h"

namespace zeropage::planner {

struct PlannedOptimizer {
  std::string type = "AdamW";      ///< as the configuration spells it; "whole": an object that needs whole parameters
  int states = 2;                  ///< number of states that the engine keeps
  bool by_torch = false;           ///< Muon and "whole"
  std::int64_t element_bytes = 0;  ///< of "whole": bytes that it keeps per trained element

  bool is_muon() const { return type == "Muon"; }
};

/// name: AdamW, Adam, Lamb, Lion, Adagrad, SGD (with momentum), Muon or whole, in any case. element_bytes: of "whole",
/// and only there. Errors: ConfigError.
PlannedOptimizer planned_optimizer(const std::string& name, std::int64_t element_bytes = 8);

/// Elements that one rank updates, of `numel` in all.
std::int64_t updated_numel(std::int64_t numel, int stage, int world_size);

/// Bytes that an optimizer of PyTorch keeps on one rank; 0 if the engine keeps them.
std::int64_t kept_bytes(const PlannedOptimizer& optimizer, const Model& model, int stage, int world_size);

/// Bytes per element that the engine's update reads and writes as state: the master of 16-bit parameters, and its
/// states.
std::int64_t engine_element_bytes(const PlannedOptimizer& optimizer, config::Precision precision);

/// Operations of one update of Muon ("gram", five iterations) for each element of its half, where matrices have
/// `hidden` rows or columns, whichever are fewer: four products with the matrix, 2 * hidden each, and 14 of the Gram
/// matrix, which is half as large on average (newton_schulz.h).
double muon_operations(double hidden);

}  // namespace zeropage::planner
