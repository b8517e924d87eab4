/// \file
/// Unsharded parameters must be the same on all ranks: all at stages 0 to 2, and persistent ones at stage 3; and with
/// groups of ranks (zeropage.shard_ranks) a shard must be the same in each group. A flipped
/// bit in one rank's memory at stage 0, or code that writes a parameter on only one rank, makes ranks differ
/// permanently without any error. So ranks compare digests every `zeropage.replica_check_steps` steps:
///
///   1. Each rank digests its unsharded pages, parameter by parameter, and with groups its shards; it gathers all
///      ranks' digests, eight bytes per page.
///   2. If some differ, ranks gather the digests of the parameters of the first such page.
///   3. All ranks raise the same error, which names the ranks that differ from the majority, the page and its
///      parameters.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <cstdint>

#include "zeropage/comm/communicator.h"
#include "zeropage/engine/model_state.h"

namespace zeropage::engine {

/// Collective, between steps. Cost: one pass at memory speed over this rank's unsharded parameters (on a device: one
/// copy of them to the host), and one small exchange; nothing at world size 1. Errors: PeerError when ranks differ; the
/// state is unchanged.
void compare_replicas(const ModelState& state, comm::Communicator& communicator, std::int64_t step);

}  // namespace zeropage::engine
