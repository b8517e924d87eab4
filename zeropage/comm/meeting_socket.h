/// \file
/// Sockets for the rendezvous of a job's ranks (MASTER_ADDR, MASTER_PORT): listening for the right addresses, and
/// waiting for a listener.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "zeropage/base/descriptor.h"
#include "zeropage/comm/world.h"

namespace zeropage::comm {

/// One numeric address of a host.
struct HostNumber {
  std::string text;  ///< "10.0.0.1", "fd00::1"
  bool is_ip6 = false;
  bool is_loopback = false;
};

/// The addresses that `host` has here, in the resolver's order. `source`: the origin of the name and the setting to
/// change, for messages. Temporary failures of the resolver are retried. Errors: ConfigError when the name does not
/// resolve; TimeoutError.
std::vector<HostNumber> resolve_host(const std::string& host, const std::string& source,
                                     std::chrono::milliseconds timeout);

/// Rank 0's listening socket: at the first of `addresses` that belongs to this host and can be reached from others. If
/// the name means loopback here (as in Debian's /etc/hosts) or an address behind translation, others reach this host by
/// another address: then it listens at all addresses. Errors: IoError when the port is taken.
Descriptor listen_for_ranks(const std::vector<HostNumber>& addresses, const Meeting& meeting);

/// Returns when a program listens at one of `addresses`; retries until then. Errors: TimeoutError with the reason of
/// the last attempt.
void await_listener(const std::vector<HostNumber>& addresses, const Meeting& meeting,
                    std::chrono::milliseconds timeout);

}  // namespace zeropage::comm
