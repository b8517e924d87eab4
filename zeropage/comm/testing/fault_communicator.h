/// \file
/// For tests: a communicator that delays, drops or aborts chosen collectives of another one.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "zeropage/comm/communicator.h"

namespace zeropage::comm {

/// The fault of one collective.
struct Fault {
  std::chrono::microseconds delay_before{0};  ///< this rank sleeps, then starts it: a slow rank
  std::chrono::microseconds delay_inside{0};  ///< its work completes this long after its start: a slow network
  bool drop = false;                          ///< this rank never starts it, and its wait does not end by itself
  std::string_view abort = "";                ///< not empty: this rank aborts with this reason instead
};

/// Returns the fault of this rank's `op`-th collective (including barriers, counted from 0).
using FaultRule = std::function<Fault(std::int64_t op, const Tag& tag)>;

/// A rule that delays each collective, before and inside, by times drawn evenly from [0, max]; the same for the same
/// seed.
FaultRule random_delays(std::uint64_t seed, std::chrono::microseconds max);

/// `inner`, with faults. `two_sided`: peers' memory is not accessible, as over a network, so that gathers are
/// collectives.
std::unique_ptr<Communicator> make_fault_communicator(std::unique_ptr<Communicator> inner, FaultRule rule,
                                                      bool two_sided = false);

}  // namespace zeropage::comm
