/// \file
/// Sockets at the place where the ranks of a job meet (MASTER_ADDR, MASTER_PORT): who may reach it, and whether
/// somebody is there.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "zeropage/base/descriptor.h"
#include "zeropage/comm/world.h"

namespace zeropage::comm {

/// One address of a host, in numbers.
struct HostNumber {
  std::string text;  ///< "10.0.0.1", "fd00::1"
  bool is_ip6 = false;
  bool is_loopback = false;
};

/// The addresses that `host` has here, in the resolver's order. `source`: where the name is from and what to set
/// instead, for messages. A name that is unknown only for now is asked for again. Errors: ConfigError when the name
/// does not resolve; TimeoutError.
std::vector<HostNumber> resolve_host(const std::string& host, const std::string& source,
                                     std::chrono::milliseconds timeout);

/// What rank 0 listens with: at the first of `addresses` that is this host's and can be reached from others. Where the
/// name stands for the loopback here (Debian writes it so into /etc/hosts) or for an address that is translated on the
/// way, others reach this host
/// otherwise: then at all addresses. Errors: IoError when the port is taken.
Descriptor listen_for_ranks(const std::vector<HostNumber>& addresses, const Meeting& meeting);

/// Returns when somebody listens at one of `addresses`; tries again and again until then. Errors: TimeoutError with the
/// reason of the last attempt.
void await_listener(const std::vector<HostNumber>& addresses, const Meeting& meeting,
                    std::chrono::milliseconds timeout);

}  // namespace zeropage::comm
