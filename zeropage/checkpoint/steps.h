/// \file
/// The checkpoints of a folder, and which one is the newest.
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
  std::string run;             ///< the run that saved it; empty: saved by an older release, or there is a problem
  std::int64_t sequence = -1;  ///< -1 when there is a problem
  std::int64_t claimed = -1;   ///< the sequence in the manifest, also when there is a problem; -1: none
  bool latest = false;         ///< can be the newest
  std::int64_t global_steps = 0;
  int world_size = 0;
  int stage = 0;
  std::int64_t bytes = 0;  ///< of all shards
  std::string problem;     ///< why it cannot be used; otherwise empty
};

/// All directories of `folder` that have a manifest or shards, newest first, those with a problem at the end. Reads the
/// summary of each manifest (manifest_summary.h), and no shards. Errors: IoError.
std::vector<StepFolder> list_steps(FileSystem& files, const std::string& folder);

/// Finds the checkpoint to load. With a tag: the one with this tag. Without: the one with the highest sequence among
/// those saved as latest; nullopt when the folder has none. Errors: CheckpointError for an unknown tag (with the known
/// ones), and, without a tag, when a newer checkpoint exists but cannot be used: `latest` names a missing one, or a
/// manifest is missing or damaged and does not show that it is older. Each error names the newest intact one.
std::optional<std::string> choose_step(FileSystem& files, const std::string& folder,
                                       const std::optional<std::string>& tag);

/// The sequence of the next save.
std::int64_t next_sequence(FileSystem& files, const std::string& folder);

/// The content of `latest`, unverified; empty when it is missing or not the name of a checkpoint.
std::string latest_hint(FileSystem& files, const std::string& folder);

/// The path of a checkpoint's manifest.
std::string manifest_path(const std::string& step_path);

}  // namespace zeropage::checkpoint
