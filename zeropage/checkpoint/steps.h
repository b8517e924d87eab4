/// \file
/// The steps of a folder, and which of them is the newest.
#pragma once

#include <string>
#include <vector>

#include "zeropage/checkpoint/file_system.h"
#include "zeropage/checkpoint/manifest.h"

namespace zeropage::checkpoint {

struct Step {
  std::string tag;
  std::string path;
  std::int64_t sequence = -1;  ///< -1 when the manifest cannot be believed
  bool latest = false;         ///< may be taken as the newest
  std::int64_t global_steps = 0;
  int world_size = 0;
  int stage = 0;
  std::int64_t bytes = 0;  ///< of all shards
  std::string problem;     ///< why the manifest cannot be believed, else empty
};

/// All directories of `folder` that have a manifest, newest first, those with a problem at the end. Reads the manifests, not the
/// shards. Errors: IoError.
std::vector<Step> list_steps(FileSystem& files, const std::string& folder);

/// What the next save counts as.
std::int64_t next_sequence(FileSystem& files, const std::string& folder);

/// What `latest` says, without believing it; empty when it is missing or not the name of a step.
std::string latest_hint(FileSystem& files, const std::string& folder);

/// Reads and checks the manifest of a step. Errors: IoError, CheckpointError.
Manifest read_manifest(FileSystem& files, const std::string& step_path);

}  // namespace zeropage::checkpoint
