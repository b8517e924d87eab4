/// \file
/// What a configuration leaves open with "auto", chosen from the real model and free memory:
///
///   1. The stage (choose_stage). Parameters that are offloaded ask for stage 3.
///   2. Offload, only where the state takes more than half of the device's free memory: the optimizer's first, to the
///      host, or to the drive that nvme_path names where the host is too small for it and its undo log; then the
///      parameters', which is stage 3. Where the device is the host there is no other memory than a drive.
///   3. Buckets, by what is free: see choose_automatic.
///   4. Sizes of the batch follow from each other (config/batch.h): a batch is made by the program's loop, so no memory
///      is spent on guesses.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "zeropage/formula/model_state.h"

namespace zeropage::formula {

struct AutoStage {
  int stage = 0;
  std::string reason;  ///< for people, with the bytes it was made from
};

/// Stage 0 for one rank. Else 1 when the whole state takes at most a third of `free_bytes`, so that the batch can grow;
/// 2, the sweet spot, when its state takes at most half, which leaves the other half to activations and frames; else 3,
/// which says so when even that is too much. `options.stage` is not read; what is offloaded does not count. free_bytes:
/// of one rank, before any state was made beside the model itself. Errors: those of model_state_bytes.
AutoStage choose_stage(const ParameterCounts& counts, StateOptions options, std::int64_t free_bytes);

/// What one rank can still take.
struct FreeMemory {
  std::int64_t device_bytes = 0;
  std::int64_t host_bytes = 0;
  bool device_is_host = false;
};

struct AutoChoice {
  std::string path;
  std::variant<std::int64_t, std::string> value;
  std::string reason;  ///< for people
};

/// One choice for each of config.automatic, to be given to config::Config::with_planned. counts: persistent_numel and
/// offloaded_numel are not read; largest_numel: of one parameter. Buckets: gradients on their way (three pages) take at
/// most a 16th of the device's free memory, and pages are no larger than by default; gathered parameters at most a
/// quarter of it, and never less than two of the largest parameter; what is gathered ahead a quarter of those. Errors:
/// those of model_state_bytes.
std::vector<AutoChoice> choose_automatic(const config::Config& config, int world_size, ParameterCounts counts,
                                         std::int64_t largest_numel, const FreeMemory& memory);

}  // namespace zeropage::formula
