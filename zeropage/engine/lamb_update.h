/// \file
/// Lamb (optim/lamb.h) over sharded pages:
///
///   1. One pass over the pages updates the moments and sums, in double, the squares of every parameter and of its
///      direction, shard by shard.
///   2. The ranks gather these sums (16 bytes per parameter) and add them in the order of the ranks, so that all of
///      them get bit-identical ratios at every stage.
///   3. update_page, the second pass, updates the parameters with them.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <vector>

#include "zeropage/comm/communicator.h"
#include "zeropage/engine/page_update.h"

namespace zeropage::engine {

/// Points 1 and 2 for `pages`; the ratio of every parameter that received a gradient. Collective. Errors: PeerError,
/// TimeoutError, and those of the state's store.
std::vector<double> lamb_ratios(UpdatePass& pass, std::vector<int> pages, const UpdateInputs& inputs,
                                comm::Communicator& communicator);

/// Point 3 for one segment, whose arrays are on `device`.
void lamb_move(const optim::Arrays& arrays, std::int64_t numel, const optim::Step& step, double ratio,
               c10::Device device);

}  // namespace zeropage::engine
