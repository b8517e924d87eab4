/// \file
/// Processes find one control block by the name of their job.
///
///  1. Rank 0 makes memory without a name in a file system, reserves it, fills it in, and publishes `layout`.
///  2. Rank 0 offers it at a local socket with the job's name (local_socket.h). An existing socket of this name means
///     another job.
///  3. The others request it as soon as it is offered, check that the user is their own, check layout and size, and map
///     the memory.
///  4. Each claims its place (`pid` from 0 to its own) and adds 1 to `attached`.
///  5. When `attached` equals the number of ranks, all continue, and rank 0 ends its offer.
/// A job that is killed at any of these steps leaves nothing behind: the kernel frees socket and memory with its
/// processes.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "zeropage/comm/shm/region_control.h"

namespace zeropage::comm {

/// Runs the steps above. Errors: as join_shared_memory.
std::shared_ptr<ControlBlock> join_control(const std::string& name, int rank, int size,
                                           std::chrono::milliseconds timeout);

}  // namespace zeropage::comm
