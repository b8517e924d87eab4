/// \file
/// Saving a step. Collective: all ranks call, each with its own tensors.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "zeropage/checkpoint/file_system.h"
#include "zeropage/checkpoint/folder_claim.h"
#include "zeropage/checkpoint/manifest.h"
#include "zeropage/checkpoint/shard_file.h"
#include "zeropage/comm/communicator.h"

namespace zeropage::checkpoint {

struct SaveRequest {
  std::string folder;                ///< the steps' common directory, made where missing
  Manifest manifest;                 ///< tag, parameters, training, host_json...; tensors and shards are filled in here
  std::vector<LocalTensor> tensors;  ///< this rank's segments; together the ranks' cover every tensor exactly
  std::int64_t keep_last = 0;        ///< remove all but so many of the run's newest steps, after the commit; 0: none
  std::shared_ptr<TrainingRun> run;  ///< rank 0's: it keeps the folder until it ends; null: a new run for this save
  Progress progress;                 ///< of this rank's shard; called by the saving thread
};

/// Returns the path of the committed step on every rank. A step of the same tag is replaced in the same instant. When
/// anything fails on any rank (another job saves into the folder, the tag is the name of something else), every rank
/// throws, and what was there before is untouched. Memory: one chunk per rank, and the list of all segments. Errors:
/// CheckpointError (with the failures of all ranks), PeerError, TimeoutError.
std::string save(FileSystem& files, comm::Communicator& communicator, SaveRequest request);

/// Refuses tags that are no plain name of a directory. Errors: UsageError.
void check_tag(const std::string& tag);

inline constexpr const char* kManifestName = "manifest.json";
inline constexpr const char* kLatestName = "latest";

}  // namespace zeropage::checkpoint
