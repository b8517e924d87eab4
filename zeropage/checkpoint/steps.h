/// \file
/// The steps of a folder, and which of them is the newest.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "zeropage/checkpoint/file_system.h"
#include "zeropage/checkpoint/manifest.h"

namespace zeropage::checkpoint {

struct StepFolder {
  std::string tag;  ///< printable, also where the name of the directory is not
  std::string path;
  std::string run;             ///< which training saved it; empty: an older release did, or there is a problem
  std::int64_t sequence = -1;  ///< -1 when there is a problem
  std::int64_t claimed =
      -1;               ///< what the manifest says of the sequence, also when there is a problem; -1: it says nothing
  bool latest = false;  ///< may be taken as the newest
  std::int64_t global_steps = 0;
  int world_size = 0;
  int stage = 0;
  std::int64_t bytes = 0;  ///< of all shards
  std::string problem;     ///< why it cannot be used, else empty
};

/// All directories of `folder` that have a manifest or shards, newest first, those with a problem at the end. Reads of
/// each manifest its summary (manifest_summary.h), and nothing of the shards. Errors: IoError.
std::vector<StepFolder> list_steps(FileSystem& files, const std::string& folder);

/// Finds the step to load. With a tag: that one. Without: the one with the highest sequence among those saved as
/// latest; nullopt when the folder has no step. Errors: CheckpointError for a tag that is not there (with those that
/// are), and, without a tag, when a newer step was there and cannot be used: `latest` names one that is missing, or a
/// manifest that is damaged or missing does not say that it is older. Each names the newest sound one.
std::optional<std::string> choose_step(FileSystem& files, const std::string& folder,
                                       const std::optional<std::string>& tag);

/// What the next save counts as.
std::int64_t next_sequence(FileSystem& files, const std::string& folder);

/// What `latest` says, without believing it; empty when it is missing or not the name of a step.
std::string latest_hint(FileSystem& files, const std::string& folder);

/// Where a step has its manifest.
std::string manifest_path(const std::string& step_path);

}  // namespace zeropage::checkpoint
