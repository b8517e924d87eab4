/// \file
/// How gradients are reduced, as configuration and placement have it.
#pragma once

#include "zeropage/config/config.h"
#include "zeropage/engine/model_state.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::engine {

reduce::ReducePolicy reduce_policy(const config::Config& config, const ModelState& state, c10::Device device);

}  // namespace zeropage::engine
