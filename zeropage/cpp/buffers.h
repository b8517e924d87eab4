/// \file
/// Types of a module's buffers, and the modules whose buffers and parameters go together.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <torch/nn/module.h>

#include <string>
#include <vector>

#include "zeropage/config/config.h"
#include "zeropage/engine/engine.h"

namespace zeropage::cpp {

/// What stays fp32 in 16 bit, for engine::settle_types: norms with running statistics, which need fp32 and take inputs
/// of 16 bit.
std::vector<std::string> declared_in_fp32(torch::nn::Module& model);

/// Floating-point buffers get data_types.buffer_dtype; without it they keep their type. Running statistics follow the
/// parameters beside them, as `parameters` says after settle_types, which torch's kernels want.
void cast_buffers(torch::nn::Module& model, const config::Config& config,
                  const std::vector<engine::ParameterInput>& parameters);

}  // namespace zeropage::cpp
