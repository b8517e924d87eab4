// Ranks as threads: the conformance suite, and every way a collective can fail to come together.
#include "zeropage/comm/thread_communicator.h"

#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "zeropage/base/error.h"
#include "zeropage/comm/communicator_conformance.h"

namespace zeropage::comm {
namespace {

using std::chrono::milliseconds;

/// Runs `body` on every rank; returns what each threw, "" for nothing.
std::vector<std::string> run_ranks(int size, milliseconds timeout, const std::function<void(Communicator&)>& body) {
  auto communicators = make_thread_communicators(size, timeout);
  std::vector<std::string> errors(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      const auto communicator = std::move(communicators[static_cast<std::size_t>(r)]);
      try {
        body(*communicator);
      } catch (const std::exception& error) {
        errors[static_cast<std::size_t>(r)] = error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return errors;
}

class ThreadConformance : public testing::TestWithParam<int> {};

// Catches wrong sums, sizes, offsets and routes, and buffers that are reused too early.
TEST_P(ThreadConformance, Holds) {
  for (const std::string& error : run_ranks(GetParam(), milliseconds(20000), run_conformance)) EXPECT_EQ(error, "");
}

INSTANTIATE_TEST_SUITE_P(Sizes, ThreadConformance, testing::Values(1, 2, 3, 4, 7));

}  // namespace
}  // namespace zeropage::comm
