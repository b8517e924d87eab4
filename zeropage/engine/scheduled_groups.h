/// \file
/// The values that a schedule sets in the parameter groups.
#pragma once

#include <vector>

#include "zeropage/config/config.h"
#include "zeropage/optim/schedule.h"

namespace zeropage::engine {

/// The learning rate of each group.
std::vector<double> rates_of(const std::vector<config::OptimizerParams>& groups);

/// Sets the schedule's learning rates and momenta, if it has any, for the next step of an optimizer of `kind`.
void take_scheduled(const optim::LrSchedule& schedule, config::OptimizerKind kind,
                    std::vector<config::OptimizerParams>& groups);

}  // namespace zeropage::engine
