/// \file
/// Which step of a folder the ranks load.
#pragma once

#include <optional>
#include <string>

#include "zeropage/comm/communicator.h"

namespace zeropage::engine {

/// Collective. The path of the step as rank 0 sees it: the tagged, or the newest; nullopt when there is none. With `allow_fallback`
/// and without a tag: the newest whose every byte is as it was saved; the ranks verify its shards side by side, and rank 0 warns
/// of every newer one that is damaged. Errors: CheckpointError, also when a rank cannot read what rank 0 has found.
std::optional<std::string> find_step(comm::Communicator& communicator, const std::string& folder,
                                     const std::optional<std::string>& tag, bool allow_fallback);

}  // namespace zeropage::engine
