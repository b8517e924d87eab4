/// \file
/// Ranks for the tests of this room: threads of one process.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "zeropage/comm/thread_communicator.h"
#include "zeropage/zeropage.h"

namespace zeropage {

/// Runs `body(rank, options)` on two ranks.
template <class Body>
void on_two_ranks(Body body) {
  auto communicators = comm::make_thread_communicators(2, std::chrono::seconds(20));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 2; ++rank) {
    Options options;
    options.communicator = std::move(communicators[rank]);
    threads.emplace_back([rank, body, options = std::move(options)] {
      try {
        body(rank, options);
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << rank << ": " << error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace zeropage
