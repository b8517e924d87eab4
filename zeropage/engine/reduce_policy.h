/// \file
/// How gradients are reduced, by the configuration.
#pragma once

#include "zeropage/config/config.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::engine {

/// compute_dtype: of the model's parameters.
reduce::ReducePolicy reduce_policy(const config::Config& config, DType compute_dtype);

}  // namespace zeropage::engine
