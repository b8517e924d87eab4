/// \file
/// torch's store, through which the ranks of a job find each other, for C++ programs and for Python.
///
///  1. The meeting's host name is resolved; on one host the ranks meet at the loopback address, whatever the name is,
///     and gloo uses it, too.
///  2. Rank 0 listens there and nowhere else (meeting_socket.h says when it must listen at all addresses), unless
///     torchrun's agent does. The others try until somebody does.
///  3. Each other rank writes a random challenge into the store, and rank 0 answers it with a digest of challenge and
///     token (ZEROPAGE_JOB_TOKEN, which the launcher hands out; else the token is empty). A rank believes nothing else
///     of a store before that: another program at the address does not know the token.
///  4. A store that is closed before it has answered was an earlier one of the same job: the script used torch's own
///     process group before and has destroyed it, and rank 0 did so later than this rank. The rank then connects again,
///     within the timeout.
///
/// torch's store itself authenticates nobody: between hosts, whoever reaches the address can read and write it.
#pragma once

#include <chrono>
#include <string>

#include "zeropage/comm/world.h"

// torch's headers last: they define macros.
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace zeropage::comm {

/// The store of this process's job, made at the first call. Collective then. It is never closed: peers may look there
/// later than this rank. `token`: empty for none. Errors: ConfigError (the name does not resolve), IoError (the port is
/// taken), PeerError (somebody else listens there), TimeoutError; each names rank, host and port, and what to set.
c10::intrusive_ptr<c10d::Store> job_store(const World& world, const Meeting& meeting, const std::string& token,
                                          std::chrono::milliseconds timeout);

/// Called in a handler: throws what is in flight again, as an error of the project that says which rank could not join
/// where.
[[noreturn]] void rethrow_not_joined(const World& world, const Meeting& meeting);

}  // namespace zeropage::comm
