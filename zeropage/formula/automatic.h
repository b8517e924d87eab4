/// \file
/// Chooses the values of "auto" keys from the real model and free memory:
///
///   1. The stage (choose_stage). Offloaded parameters need stage 3.
///   2. Offload, only where the state takes more than half of the device's free memory: first the optimizer state, to
///      the host, or to the drive of nvme_path where the host is too small for it and its undo log; then the
///      parameters, at stage 3. Where the device is the CPU, state can only be offloaded to a drive.
///   3. Bucket sizes, by the free memory: see choose_automatic.
///   4. Batch sizes follow from each other (config/batch.h). The program's loop makes the batches, so the engine does
///      not guess from memory.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "zeropage/formula/model_state.h"

namespace zeropage::formula {

struct AutoStage {
  int stage = 0;
  std::string reason;  ///< for people, with the bytes that led to the choice
};

/// Stage 0 for one rank. Otherwise stage 1 when the whole state takes at most a third of `free_bytes`, so that the
/// batch can grow; stage 2 when its state takes at most half, so that the other half remains for activations and
/// frames; otherwise stage 3, with a reason that tells when even that is too much. `options.stage` is not read, and
/// offloaded state does not count. free_bytes: of one rank, before any state except the model was made. Errors: as
/// model_state_bytes.
AutoStage choose_stage(const ParameterCounts& counts, StateOptions options, std::int64_t free_bytes);

/// The memory that is free for one rank.
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
/// offloaded_numel are not read; largest_numel: of one parameter. Buckets: gradients that are being reduced (three
/// pages) take at most a 16th of the device's free memory, and pages are no larger than by default. Gathered parameters
/// take at most a quarter of the free memory, but the limit allows at least twice the largest parameter. Prefetched
/// parameters take a quarter of that limit. Errors: as model_state_bytes.
std::vector<AutoChoice> choose_automatic(const config::Config& config, int world_size, ParameterCounts counts,
                                         std::int64_t largest_numel, const FreeMemory& memory);

}  // namespace zeropage::formula
