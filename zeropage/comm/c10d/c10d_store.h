/// \file
/// torch's store, by which the ranks of a job find each other, for C++ programs and for Python.
///
///  1. The meeting's host name is resolved; on one host the ranks meet at the loopback address, regardless of the name,
///     and gloo uses it, too.
///  2. Rank 0 listens only there (meeting_socket.h describes when it must listen at all addresses), unless torchrun's
///     agent does. The others try until a process listens.
///  3. Each other rank writes a random challenge into the store, and rank 0 answers it with a digest of challenge and
///     token (ZEROPAGE_JOB_TOKEN, set by the launcher; otherwise the token is empty). Before that a rank trusts nothing
///     else in a store: another program at the address does not know the token.
///  4. A store that is closed before it has answered is an earlier one of the same job: the script used torch's own
///     process group before and has destroyed it, later on rank 0 than on this rank. The rank then connects again,
///     within the timeout.
///
/// torch's store itself has no authentication: between hosts, anyone who reaches the address can read and write it.
#pragma once

#include <chrono>
#include <string>

#include "zeropage/comm/world.h"

// torch's headers last, because they define macros.
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace zeropage::comm {

/// The store of this process's job, made at the first call, which is collective. It is never closed, because peers may
/// read it later than this rank. `token`: empty for none. Errors: ConfigError (the name does not resolve), IoError (the
/// port is taken), PeerError (another program listens there), TimeoutError; each names rank, host and port, and the
/// setting to change.
c10::intrusive_ptr<c10d::Store> job_store(const World& world, const Meeting& meeting, const std::string& token,
                                          std::chrono::milliseconds timeout);

/// Called in a handler: rethrows the current exception as an error of the project that names the rank and the address.
[[noreturn]] void rethrow_not_joined(const World& world, const Meeting& meeting);

}  // namespace zeropage::comm
