/// \file
/// How processes find one control block by the name of their job.
///
///  1. Rank 0 makes memory without a name in a file system, reserves it, fills it in, and publishes `layout`.
///  2. Rank 0 offers it at a local socket that is called after the job (local_socket.h). A socket of this name means
///     another job.
///  3. The others ask there as soon as somebody offers, see that it is their own user, check layout and size, and map
///     the memory.
///  4. Each claims its place (`pid` from 0 to its own) and adds 1 to `attached`.
///  5. When `attached` equals the number of ranks, all go on, and rank 0 ends its offer.
/// Nothing is left of a job that is killed at any of these moments: the kernel forgets socket and memory with its
/// processes.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "zeropage/comm/shm/region_control.h"

namespace zeropage::comm {

/// Carries out the steps above. Errors: as join_shared_memory.
std::shared_ptr<ControlBlock> join_control(const std::string& name, int rank, int size,
                                           std::chrono::milliseconds timeout);

}  // namespace zeropage::comm
