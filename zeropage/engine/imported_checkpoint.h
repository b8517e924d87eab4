/// \file
/// Writes a step with content from another source, for example another library's checkpoint.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "zeropage/checkpoint/manifest.h"

namespace zeropage::engine {

struct ImportedTensor {
  std::string name;  ///< as in docs/checkpoint-format.md: value/<parameter>, exp_avg/<parameter>...
  at::ScalarType type = at::kFloat;
  std::vector<std::int64_t> shape;
};

/// Writes and commits a step of one shard, in one process. `manifest`: tag, stage, parameters, training, config_json,
/// host_json. `read` is called once for each tensor that has elements, by name, and returns its values in its type and
/// any shape. Returns the step's path. Memory: the largest tensor. Errors: CheckpointError, also for an exception of
/// `read`; UsageError for the tag.
std::string write_imported_step(const std::string& folder, checkpoint::Manifest manifest,
                                const std::vector<ImportedTensor>& tensors,
                                const std::function<at::Tensor(const std::string&)>& read);

}  // namespace zeropage::engine
