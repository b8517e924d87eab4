/// \file
/// The few values of a manifest for a list of checkpoints, without its tensors: a folder may have many checkpoints, and
/// a checkpoint hundreds of thousands of tensors.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace zeropage::checkpoint {

struct ManifestSummary {
  std::string tag;
  std::string run;  ///< empty: an older release wrote it
  std::int64_t sequence = 0;
  bool latest = false;
  std::int64_t global_steps = 0;
  int world_size = 0;
  int stage = 0;
  std::int64_t shard_bytes = 0;  ///< of all shards
};

/// Compares the digest and reads these values. The rest is checked only when the checkpoint is opened
/// (manifest_from_text).
/// Cost: memory speed for the digest; parsing stops at the lists of parameters, except for manifests of older releases.
/// Errors: CheckpointError naming `origin`.
ManifestSummary summary_from_text(std::string_view text, const std::string& origin);

/// The sequence in a damaged manifest, unverified; -1 when there is none.
std::int64_t claimed_sequence(std::string_view text);

}  // namespace zeropage::checkpoint
