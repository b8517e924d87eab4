/// \file
/// The batch rule: train_batch_size = train_micro_batch_size_per_gpu x gradient_accumulation_steps x world size.
#pragma once

#include "zeropage/config/config.h"
#include "zeropage/config/settings.h"

namespace zeropage::config {

/// Completes the three batch sizes:
///
///     given                      follows
///     all three                  nothing; the product must hold
///     train, micro               accumulation = train / (micro x world)
///     train, accumulation        micro = train / (accumulation x world)
///     micro, accumulation        train = micro x accumulation x world
///     train                      accumulation = 1, micro = train / world
///     micro                      accumulation = 1, train = micro x world
///     accumulation, or none      micro = 1 if it is "auto"; otherwise an error
///
/// Every division must be exact. Computed sizes are written into `settings` as derived. With world_size 0 nothing is
/// computed: sizes that are not given stay 0 (accumulation: 1). Errors: ConfigError with the arithmetic and values that
/// would work.
Batch resolve_batch(Settings& settings, int world_size);

}  // namespace zeropage::config
