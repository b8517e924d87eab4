/// \file
/// What every rank holds whole must be the same on all of them: parameters at stages 0 to 2, and persistent ones at
/// stage 3. A bit that flips in one rank's memory at stage 0, or code that writes a parameter on one rank alone, makes
/// ranks differ for good without any error. So every `zeropage.replica_check_steps` steps ranks compare digests:
///
///   1. Each rank digests its whole pages, parameter by parameter, and gathers all ranks' digests, eight bytes a page.
///   2. Where some differ, ranks gather the digests of the parameters of the first such page.
///   3. All ranks raise the same error, which names the ranks that differ from the most, the page and its parameters.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <cstdint>

#include "zeropage/comm/communicator.h"
#include "zeropage/engine/model_state.h"

namespace zeropage::engine {

/// Collective, between steps. Cost: one pass at memory speed over what is whole on this rank (on a device: one copy of
/// it to the host), and one small exchange; nothing at world size 1. Errors: PeerError when ranks differ; the state
/// stays as it is.
void compare_replicas(const ModelState& state, comm::Communicator& communicator, std::int64_t step);

}  // namespace zeropage::engine
