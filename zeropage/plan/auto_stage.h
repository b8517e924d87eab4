/// \file
/// `"stage": "auto"`: the stage of a real model on real memory.
#pragma once

#include <string>

#include "zeropage/plan/model_state.h"

namespace zeropage::plan {

struct AutoStage {
  int stage = 0;
  std::string reason;  ///< for people, with the bytes it was made from
};

/// Stage 0 for one rank. Else 1 when the whole state takes at most a third of `free_bytes`, so that the batch can grow; 2, the sweet spot,
/// when its state takes at most half, which leaves the other half to activations and frames; else 3, which says so when
/// even that is too much. `options.stage` is not read. free_bytes: of one rank, before any state was made beside the model itself.
/// Errors: those of model_state_bytes.
AutoStage choose_stage(const ParameterCounts& counts, StateOptions options, std::int64_t free_bytes);

}  // namespace zeropage::plan
