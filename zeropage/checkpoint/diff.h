/// \file
/// The differences between two checkpoints.
#pragma once

#include <string>
#include <vector>

#include "zeropage/checkpoint/load.h"

namespace zeropage::checkpoint {

/// Compares parameters, masters and optimizer state element by element, whichever ranks hold them, and the counters of
/// the training. Does not compare values of a single rank or of the Python layer. Returns one line per difference, and
/// none when all is equal. Reads both checkpoints once. Memory: one chunk per shard, and one piece of each. Errors:
/// IoError, CheckpointError.
std::vector<std::string> differences(Checkpoint& a, Checkpoint& b);

}  // namespace zeropage::checkpoint
