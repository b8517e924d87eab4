/// \file
/// A communicator whose ranks can also gather within small groups of nearby ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "zeropage/comm/communicator.h"
#include "zeropage/comm/world.h"

namespace zeropage::comm {

/// `all`, with gathers among the ranks of `nearby`: those of `all` with the numbers [k * n, (k + 1) * n), n =
/// nearby->size(), that include this rank. No other code may use `nearby`; all ranks of `nearby` call it in the same
/// order.
std::shared_ptr<Communicator> with_nearby(std::shared_ptr<Communicator> all, std::shared_ptr<Communicator> nearby);

/// Checks that `world` permits groups of `count` nearby ranks (zero_hpz_partition_size). Errors: ConfigError unless
/// `count` divides the number of ranks of this rank's host and these have consecutive numbers.
void check_nearby(const World& world, std::int64_t count);

/// `all`, whose ranks are `world`, with its groups of `count` nearby CPU ranks, which share memory. Collective. `name`:
/// as for join_shared_memory. Errors: those of check_nearby and join_shared_memory.
std::shared_ptr<Communicator> join_nearby(std::shared_ptr<Communicator> all, const World& world, std::int64_t count,
                                          const std::string& name);

}  // namespace zeropage::comm
