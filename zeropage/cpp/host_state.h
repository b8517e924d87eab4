/// \file
/// What a checkpoint holds beside the engine's own state, in the form that Python gives it
/// (python/zeropage/checkpoint_values.py):
///
///     {"client": ..., "optimizer": "adamw", "groups": [...], "scheduler": null, "buffers": {"dict": [[name, {"tensor":
///     "host/0"}], ...]}}
///
/// A dict is {"dict": [[key, value], ...]}, a tuple {"tuple": [...]}, a tensor {"tensor": its name in the checkpoint},
/// a number that JSON lacks {"number": text}.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "zeropage/checkpoint/load.h"
#include "zeropage/config/config.h"
#include "zeropage/cpp/archive_items.h"
#include "zeropage/cpp/checkpoint.h"

namespace zeropage::cpp {

using Tensors = std::map<std::string, at::Tensor>;

struct HostState {
  ClientState client;
  std::optional<std::string> optimizer;  ///< its name; absent: none, or of before checkpoints had it
  std::vector<config::OptimizerParams> groups;
  std::vector<ArchiveItems> options{};  ///< instead, of an optimizer object of the program's
  std::string cannot_follow{};          ///< a hyperparameter that the optimizer of now cannot take over; empty: none
  Tensors buffers{};
  at::Tensor random{};         ///< state of this rank's generator of the CPU; undefined: not there
  at::Tensor device_random{};  ///< the same of its GPU
};

/// The document; tensors that it speaks of go into `tensors` under the names it gives them. Errors: UsageError when the
/// client state is no JSON object.
std::string host_state_to_json(const HostState& state, config::OptimizerKind kind, Tensors& tensors);

/// The names of a rank's generators among the tensors.
std::string random_name(int rank, bool device);

/// Reads it. `params`: what groups have where the checkpoint says nothing; of an optimizer object `options`, whose
/// types the values get.
/// Errors: CheckpointError.
HostState read_host_state(checkpoint::Checkpoint& step, int rank, config::OptimizerKind kind,
                          const config::OptimizerParams& params, const std::vector<ArchiveItems>& options = {});

}  // namespace zeropage::cpp
