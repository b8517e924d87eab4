/// \file
/// Saves a checkpoint. Collective: all ranks call, each with its own tensors.
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
  std::string folder;                ///< the directory of the checkpoints, made if missing
  Manifest manifest;                 ///< tag, parameters, training, host_json...; tensors and shards are filled in here
  std::vector<LocalTensor> tensors;  ///< this rank's segments; the segments of all ranks cover every tensor exactly
  std::int64_t keep_last =
      0;  ///< keep so many newest checkpoints of the run and remove the others after the commit; 0: keep all
  std::shared_ptr<TrainingRun>
      run;            ///< used by rank 0: it claims the folder until it is destroyed; null: a new run for this save
  Progress progress;  ///< of this rank's shard; called by the saving thread
};

/// Returns the path of the committed step on every rank. A checkpoint with the same tag is replaced atomically. When
/// anything fails on any rank (another job saves into the folder, the tag is the name of another file), every rank
/// throws, and earlier checkpoints are unchanged. Memory: one chunk per rank, and the list of all segments. Errors:
/// CheckpointError (with the failures of all ranks), PeerError, TimeoutError.
std::string save(FileSystem& files, comm::Communicator& communicator, SaveRequest request);

/// Refuses tags that are not simple names of a directory. Errors: UsageError.
void check_tag(const std::string& tag);

inline constexpr const char* kManifestName = "manifest.json";
inline constexpr const char* kLatestName = "latest";

}  // namespace zeropage::checkpoint
