/// \file
/// The contents of a checkpoint in addition to the engine's own state, in the form of Python
/// (python/zeropage/checkpoint_values.py):
///
///     {"client": ..., "optimizer": "adamw", "groups": [...], "scheduler": null, "buffers": {"dict": [[name, {"tensor":
///     "host/0"}], ...]}}
///
/// stored_values.h has the form of values.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "zeropage/checkpoint/load.h"
#include "zeropage/config/config.h"
#include "zeropage/cpp/archive_items.h"
#include "zeropage/cpp/checkpoint.h"
#include "zeropage/cpp/stored_values.h"

namespace zeropage::cpp {

struct HostState {
  ClientState client;
  std::optional<std::string> optimizer;  ///< its name; nullopt: none, or a checkpoint of an older release
  std::vector<config::OptimizerParams> groups;
  std::vector<ArchiveItems> options{};  ///< instead, of an optimizer object of the program's
  std::set<std::string> excluded{};     ///< buffers that the save left out on purpose
  std::string cannot_follow{};          ///< a hyperparameter that the current optimizer does not support; empty: none
  Tensors buffers{};
  at::Tensor random{};         ///< state of this rank's generator of the CPU; undefined: missing
  at::Tensor device_random{};  ///< the same for its GPU
};

/// Makes the document. Adds the tensors that it refers to to `tensors`, under the names in it. Errors: UsageError when
/// the client state is no JSON object.
std::string host_state_to_json(const HostState& state, config::OptimizerKind kind, Tensors& tensors);

/// The names of the tensors with the states of a rank's generators.
std::string random_name(int rank, bool device);

/// Reads it. `params`: the values of groups that the checkpoint does not have. `options`: the same for an optimizer
/// object; the values get their types.
/// Errors: CheckpointError.
HostState read_host_state(checkpoint::Checkpoint& step, int rank, config::OptimizerKind kind,
                          const config::OptimizerParams& params, const std::vector<ArchiveItems>& options = {});

}  // namespace zeropage::cpp
