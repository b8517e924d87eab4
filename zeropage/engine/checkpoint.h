/// \file
/// An engine's state as tensors of a checkpoint, and back. The segments are the same at every stage: rank r writes its
/// shard of each page, and reads the part of each page that it keeps.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "zeropage/checkpoint/folder_claim.h"
#include "zeropage/checkpoint/load.h"
#include "zeropage/checkpoint/manifest.h"
#include "zeropage/checkpoint/shard_file.h"
#include "zeropage/comm/communicator.h"
#include "zeropage/config/config.h"
#include "zeropage/engine/model_state.h"

namespace zeropage::engine {

class BackgroundSave;

/// State of a caller's optimizer for a parameter.
struct CallerState {
  std::string kind;  ///< its tensor is called kind/parameter
  int parameter = 0;
  std::int64_t offset = 0;  ///< first element within the parameter
  at::Tensor values;        ///< [numel] of the elements that this rank updates; or without dimensions
};

struct SaveOptions {
  std::string folder;
  std::string tag;
  bool latest = true;                                       ///< false: never found as the newest step, only by its tag
  bool exclude_frozen = false;                              ///< leave out parameters that are not trained
  std::map<std::string, std::vector<std::string>> aliases;  ///< further names of tied parameters
  std::string host_json = "{}";                             ///< rank 0's is saved
  std::map<std::string, at::Tensor> host_tensors;           ///< this rank's; names differ between ranks
  std::vector<CallerState> caller_state;
  checkpoint::Progress progress;  ///< for this rank's shard; not called by saves in the background
};

struct LoadOptions {
  bool strict = true;            ///< parameters of the model and of the checkpoint must be the same
  bool optimizer_states = true;  ///< moments, update counts, loss scale; false: masters start from the loaded values
  bool schedule = true;
  bool parameters = true;    ///< false: they are as the caller has made them; then no optimizer states either
  bool module_only = false;  ///< only parameters: no optimizer, schedule or counters
  std::string problem;  ///< an error that the caller found on this rank; unless it is empty, no rank loads anything
};

/// Parameters that a load did not set.
struct LoadReport {
  std::vector<std::string>
      missing;  ///< parameters of the model that the checkpoint does not have, also by exclude_frozen
  std::vector<std::string> unexpected;  ///< parameters of the checkpoint that the model does not have

  /// For a warning: the first names of each kind, and how many there are; nullopt: every parameter was set.
  std::optional<std::string> warning() const;
};

/// The parts of an engine that a checkpoint reads and writes.
struct CheckpointedState {
  ModelState& model;
  std::vector<std::int64_t>& updates;  ///< per parameter: optimizer steps so far
  comm::Communicator& communicator;
  const config::Config& config;
  const std::shared_ptr<checkpoint::TrainingRun>& run;
};

/// Collective. Returns the step's path. `background`: writes the step; this function returns when it has its copy.
/// null: this function writes the step.
/// Memory: one chunk, and on devices one more. Errors: as checkpoint::save and BackgroundSave::start.
std::string save_state(const CheckpointedState& state, const checkpoint::TrainingState& training,
                       const SaveOptions& options, BackgroundSave* background);

/// Collective, in two phases: every rank compares names, shapes and types and reads everything it needs once against
/// the digests; only if that succeeded on all ranks, everything is read again into its place. Types may differ: fp32
/// sources are rounded, 16-bit ones widened. Memory: the largest segment. Errors: CheckpointError, with the model
/// unchanged; or, when files changed between the phases, with a message that the model must not be used.
LoadReport load_state(const CheckpointedState& state, checkpoint::Checkpoint& step, const LoadOptions& options);

/// The name of a type in checkpoints. Errors: CheckpointError naming `tensor` for types that checkpoints do not
/// support.
std::string type_name(at::ScalarType type, const std::string& tensor);

/// A whole tensor of a checkpoint, on the host. Errors: CheckpointError, IoError.
at::Tensor read_tensor(checkpoint::Checkpoint& step, const std::string& name);

/// Elements [offset, offset + numel) of a flat tensor, on the host. Errors: CheckpointError, IoError.
at::Tensor read_range(checkpoint::Checkpoint& step, const std::string& name, std::int64_t offset, std::int64_t numel);

}  // namespace zeropage::engine
