/// \file
/// What two steps have and have not in common.
#pragma once

#include <string>
#include <vector>

#include "zeropage/checkpoint/load.h"

namespace zeropage::checkpoint {

/// Compares parameters, masters and optimizer state element by element, whatever ranks they lie on, and the counters of
/// the training; not what only one rank or the Python layer has. Returns one line per difference, none when all is the
/// same. Reads both steps once. Memory: one chunk per shard, and one piece of each. Errors: IoError, CheckpointError.
std::vector<std::string> differences(Checkpoint& a, Checkpoint& b);

}  // namespace zeropage::checkpoint
