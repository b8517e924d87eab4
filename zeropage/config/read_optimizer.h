/// \file
/// Reads the sections "optimizer" and "scheduler".
#pragma once

#include "zeropage/config/config.h"
#include "zeropage/config/settings.h"

namespace zeropage::config {

/// Errors: KeyError for hyperparameters that contradict each other.
Optimizer read_optimizer(const Settings& settings);

Schedule read_schedule(const Settings& settings);

}  // namespace zeropage::config
