/// \file
/// Types of a module's buffers, and the modules whose buffers and parameters must have matching types.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <torch/nn/module.h>

#include <string>
#include <vector>

#include "zeropage/config/config.h"
#include "zeropage/engine/engine.h"

namespace zeropage::cpp {

/// The parameters that stay fp32 in a 16-bit model, for engine::settle_types: norms with running statistics, which need
/// fp32 and accept 16-bit inputs.
std::vector<std::string> declared_in_fp32(torch::nn::Module& model);

/// Floating-point buffers get data_types.buffer_dtype; without it they keep their type. Running statistics get the type
/// that the parameters of their module have after settle_types (`parameters`), because torch's kernels need equal
/// types.
void cast_buffers(torch::nn::Module& model, const config::Config& config,
                  const std::vector<engine::ParameterInput>& parameters);

}  // namespace zeropage::cpp
