/// \file
/// The formulas of optim/update.h in torch's operators, for memory that the host's kernels cannot reach.
#pragma once

#include "zeropage/paging/torch_config.h"

#include "zeropage/optim/update.h"

namespace zeropage::engine {

/// optim::update for arrays on `device`; results agree with the host's within rounding. Cost: about ten kernels, each a pass over
/// some of the arrays, and two temporaries.
void update_on_device(const optim::Arrays& arrays, std::int64_t numel, const optim::Step& step, c10::Device device);

}  // namespace zeropage::engine
