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

/// Runs `body(rank, options)` in a thread for each rank, with its options.
template <class Body>
void on_ranks(std::vector<Options> ranks, Body body) {
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    threads.emplace_back([rank = static_cast<int>(rank), body, options = std::move(ranks[rank])] {
      try {
        body(rank, options);
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << rank << ": " << error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

/// Runs `body(rank, options)` on two ranks.
template <class Body>
void on_two_ranks(Body body) {
  auto communicators = comm::make_thread_communicators(2, std::chrono::seconds(20));
  std::vector<Options> ranks(2);
  for (std::size_t rank = 0; rank < 2; ++rank) ranks[rank].communicator = std::move(communicators[rank]);
  on_ranks(std::move(ranks), body);
}

}  // namespace zeropage
