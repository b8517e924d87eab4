/// \file
/// The model as one safetensors file, in its compute types.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <string>
#include <utility>
#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/engine/engine.h"

namespace zeropage::engine {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// Collective. Writes `tensors` (parameters of the engine, and buffers) to `path`, which appears complete and durable,
/// or not at all; an existing file is replaced. Parameters are gathered one after the other and written by rank 0.
/// Memory: one page, and one parameter on rank 0. Errors: UsageError (a name that does not end in .safetensors,
/// duplicate names), CheckpointError on every rank when rank 0 cannot write.
void save_model_file(Engine& engine, comm::Communicator& communicator, const std::string& path,
                     const NamedTensors& tensors);

}  // namespace zeropage::engine
