/// \file
/// Ranks as threads of one process: for tests and for programs that keep all ranks in one process.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "zeropage/comm/aborts.h"
#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

/// One communicator per rank; pass each to its own thread. Destroying one tells the others that this rank has left. A
/// wait ends after `timeout`. `aborts`: as for join_shared_memory. Cost: about 0.8 MiB per rank, touched when used.
/// Errors: ConfigError for a size that is not between 1 and 1024.
std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int size, std::chrono::milliseconds timeout,
                                                                     const std::shared_ptr<Aborts>& aborts = nullptr);

}  // namespace zeropage::comm
