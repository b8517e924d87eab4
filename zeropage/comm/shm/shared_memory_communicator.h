/// \file
/// Ranks as processes of one host that share memory: the default for CPU ranks on one machine.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "zeropage/comm/aborts.h"
#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

/// Joins the ranks of one job; returns when all `size` ranks have joined. All call with the same `name`, which no other
/// job of this host uses at the same time: letters, digits and "-_." ("zp-<uid>-<token>"). Ranks must run as the same
/// user in one PID namespace. Every wait, including this one, ends after `timeout`.
/// `aborts`: of the communicators that abort with this one; null: none does.
/// Memory: about 0.8 MiB per rank, reserved immediately, without a name in a file system.
/// Errors: ConfigError (name, rank, size), IoError (no shared memory, or it belongs to another user), PeerError (a rank
/// died, joined twice, or has another size), TimeoutError (with the missing ranks).
std::unique_ptr<Communicator> join_shared_memory(const std::string& name, int rank, int size,
                                                 std::chrono::milliseconds timeout,
                                                 std::shared_ptr<Aborts> aborts = nullptr);

}  // namespace zeropage::comm
