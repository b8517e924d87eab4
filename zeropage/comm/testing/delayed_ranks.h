/// \file
/// For tests: ranks as threads that behave like ranks on a network.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "zeropage/comm/testing/fault_communicator.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::comm {

/// Runs `body` on `size` threads. `two_sided`: peers' memory is hidden, and every collective is delayed by at most 200
/// microseconds. Returns the outcomes.
inline std::vector<std::string> run_threads(int size, std::chrono::milliseconds timeout, bool two_sided,
                                            const RankBody& body) {
  auto communicators = make_thread_communicators(size, timeout);
  for (int rank = 0; two_sided && rank < size; ++rank) {
    communicators[rank] = make_fault_communicator(std::move(communicators[rank]),
                                                  random_delays(rank, std::chrono::microseconds(200)), true);
  }
  return run_threads(std::move(communicators), body);
}

}  // namespace zeropage::comm
