/// \file
/// How processes find one control block by name.
///
///  1. Rank 0 creates /dev/shm/<name> exclusively, mode 0600, and locks it (flock) until step 5. A file that is there
///     already but not locked was left by a rank 0 that died: it is removed. A locked one means another job of this name.
///  2. Rank 0 reserves its memory, fills it in, and publishes `layout`.
///  3. The others open the file when it appears, check user, layout, size and that its creator lives, and map it.
///  4. Each claims its place (`pid` from 0 to its own) and adds 1 to `attached`.
///  5. When `attached` equals the number of ranks, all go on, and rank 0 removes the name.
/// A rank that meets a file that was removed before all had attached has met a dead job's: it starts again at 3.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "zeropage/comm/region_control.h"

namespace zeropage::comm {

/// Carries out the steps above. Errors: as join_shared_memory.
std::shared_ptr<ControlBlock> join_control(const std::string& name, int rank, int size,
                                           std::chrono::milliseconds timeout);

}  // namespace zeropage::comm
