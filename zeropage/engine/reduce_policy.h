/// \file
/// The way gradients are reduced, from configuration and placement.
#pragma once

#include <memory>

#include "zeropage/base/ledger.h"
#include "zeropage/config/config.h"
#include "zeropage/engine/model_state.h"
#include "zeropage/reduce/reducer.h"

namespace zeropage::engine {

/// Whether losses are multiplied by a scale: fp16, of the model or of autocast.
bool scales_losses(const config::Config& config);

/// Whether a step whose gradients are not finite is skipped: with a loss scale, and in bf16 unless switched off.
bool checks_overflow(const config::Config& config);

/// `rank`: this one. Makes their store on a drive if gradients are offloaded to one. Errors: those of io::Store.
reduce::ReducePolicy reduce_policy(const config::Config& config, const ModelState& state, int rank, c10::Device device,
                                   const std::shared_ptr<Ledger>& ledger);

}  // namespace zeropage::engine
