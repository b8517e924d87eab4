// The faults that other tests rely on, and the conformance suite under random delays.
#include "zeropage/comm/testing/fault_communicator.h"

#include <gtest/gtest.h>

#include "zeropage/comm/testing/communicator_conformance.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::comm {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

/// Runs `body` on 3 rank threads whose collectives suffer `rule(rank)`.
std::vector<std::string> run_with_faults(milliseconds timeout, const std::function<FaultRule(int)>& rule,
                                         const RankBody& body) {
  auto inner = make_thread_communicators(3, timeout);
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (int r = 0; r < 3; ++r) {
    communicators.push_back(make_fault_communicator(std::move(inner[static_cast<std::size_t>(r)]), rule(r)));
  }
  return run_threads(std::move(communicators), body);
}

FaultRule only(std::int64_t faulty_op, Fault fault) {
  return [=](std::int64_t op, const Tag&) { return op == faulty_op ? fault : Fault(); };
}

// Catches results that depend on ranks being equally fast.
TEST(FaultCommunicator, ConformanceHoldsUnderRandomDelays) {
  const auto rule = [](int rank) { return random_delays(static_cast<std::uint64_t>(rank), microseconds(300)); };
  for (const std::string& outcome : run_with_faults(milliseconds(20000), rule, run_conformance)) EXPECT_EQ(outcome, "");
}

// Catches a decorator that does not delay, so that tests built on it test nothing.
TEST(FaultCommunicator, DelaysBeforeAndInside) {
  const auto rule = [](int rank) {
    return rank == 0 ? only(1, {.delay_before = milliseconds(30), .delay_inside = milliseconds(40)}) : only(-1, {});
  };
  run_with_faults(milliseconds(20000), rule, [](Communicator& c) {
    std::int64_t all[3];
    c.barrier({"first", 0});
    const auto begin = Clock::now();
    const std::int64_t mine = c.rank();
    const auto work = c.all_gather(&mine, all, 8, {"second", 0});
    work->wait();
    EXPECT_TRUE(work->poll());
    if (c.rank() == 0) {
      EXPECT_GE(Clock::now() - begin, milliseconds(70));
    } else {
      EXPECT_GE(Clock::now() - begin, milliseconds(25));
    }
  });
}

// Catches a rank that skips a collective and is not named.
TEST(FaultCommunicator, DroppedCollectiveEndsOnEveryRank) {
  const auto rule = [](int rank) { return only(rank == 2 ? 1 : -1, {.drop = true}); };
  const auto outcomes = run_with_faults(milliseconds(300), rule, [](Communicator& c) {
    c.barrier({"first", 0});
    float x = 1;
    c.all_reduce(&x, 1, DType::kFloat32, {"gather page", 5}, {})->wait();
  });
  for (const std::string& outcome : outcomes) EXPECT_TRUE(contains(outcome, "Error: ")) << outcome;
  for (const int r : {0, 1}) {
    const std::string& outcome = outcomes[static_cast<std::size_t>(r)];
    EXPECT_TRUE(contains(outcome, "gather page")) << outcome;
  }
}

// Catches an abort that does not reach the others with its reason.
TEST(FaultCommunicator, AbortAtAnOperation) {
  const auto rule = [](int rank) { return only(rank == 1 ? 2 : -1, {.abort = "disk full"}); };
  const auto outcomes = run_with_faults(milliseconds(20000), rule, [](Communicator& c) {
    for (int i = 0; i < 5; ++i) c.barrier({"step", i});
  });
  for (const std::string& outcome : outcomes) EXPECT_TRUE(contains(outcome, "disk full")) << outcome;
}

}  // namespace
}  // namespace zeropage::comm
