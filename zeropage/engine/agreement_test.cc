// What ranks tell each other before they change anything.
#include "zeropage/engine/agreement.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <mutex>

#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::engine {
namespace {

// Catches strings that are compared by length or by their start only; every rank must see the first line that differs.
TEST(RequireSame, ShowsTheFirstDifferenceOnEveryRank) {
  const std::vector<std::string> strings = {"lr 1\nstage 2\npage 3\n", "lr 1\nstage 2\npage 3\n", "lr 1\nstage 3\n",
                                            "lr 2\n"};
  const auto outcomes = comm::run_threads(4, comm::kRankTimeout, [&](comm::Communicator& communicator) {
    require_same_everywhere(communicator, strings[communicator.rank()]);
  });
  for (const auto& outcome : outcomes) {
    EXPECT_TRUE(comm::contains(outcome, "PeerError")) << outcome;
    EXPECT_TRUE(comm::contains(outcome, "rank(s) 2, 3 differ from rank 0")) << outcome;
    EXPECT_TRUE(comm::contains(outcome, "rank 0 has \"stage 2\", rank 2 has \"stage 3\"")) << outcome;
  }
}

// Catches a string that is the start of another one.
TEST(RequireSame, SeesAMissingEnd) {
  const std::vector<std::string> strings = {"one\ntwo\n", "one\n"};
  for (const auto& outcome : comm::run_threads(2, comm::kRankTimeout, [&](comm::Communicator& communicator) {
         require_same_everywhere(communicator, strings[communicator.rank()]);
       })) {
    EXPECT_TRUE(comm::contains(outcome, "rank 0 has \"two\", rank 1 has \"(nothing)\"")) << outcome;
  }
}

// Catches an error where there is no difference.
TEST(RequireSame, IsSilentOtherwise) {
  for (const auto& outcome : comm::run_threads(3, comm::kRankTimeout, [&](comm::Communicator& communicator) {
         require_same_everywhere(communicator, "same\n");
       })) {
    EXPECT_EQ(outcome, "");
  }
}

std::vector<GlobalCheck> checks_of(const std::vector<LocalCheck>& local) {
  std::vector<GlobalCheck> checks(local.size());
  for (const auto& outcome :
       comm::run_threads(static_cast<int>(local.size()), comm::kRankTimeout, [&](comm::Communicator& communicator) {
         checks[communicator.rank()] = agree_on_step(communicator, local[communicator.rank()]);
       })) {
    EXPECT_EQ(outcome, "");
  }
  return checks;
}

// Catches sums and overflows that differ between ranks.
TEST(AgreeOnStep, IsTheSameOnEveryRank) {
  std::vector<LocalCheck> local(3);
  for (int rank = 0; rank < 3; ++rank) {
    local[rank].sum_of_squares = std::pow(10.0, 8 * rank);  // an order of summation shows in the last place
    local[rank].trace_hash = 7;
  }
  local[1].overflow_parameter = 11;
  local[2].overflow_parameter = 3;
  for (const auto& global_check : checks_of(local)) {
    EXPECT_EQ(global_check.sum_of_squares, (1.0 + 1e8) + 1e16);
    EXPECT_EQ(global_check.overflow_parameter, 3);  // the model's first, whichever rank has it
    EXPECT_TRUE(global_check.traces_agree);
  }
}

// Catches a rank that continues without checks although another rank follows another trace.
TEST(AgreeOnStep, OneOtherTraceIsEnoughToDisagree) {
  std::vector<LocalCheck> local(3);
  for (auto& global_check : local) global_check.trace_hash = 7;
  local[2].trace_hash = 8;
  for (const auto& global_check : checks_of(local)) EXPECT_FALSE(global_check.traces_agree);
}

// Catches a report of one rank that the other ranks do not receive.
TEST(AgreeOnStep, WhatOneRankSaysAllRanksKnow) {
  std::vector<LocalCheck> local(3);
  local[1].flags.stop_requested = true;
  for (const auto& global_check : checks_of(local)) {
    EXPECT_TRUE(global_check.flags.stop_requested);
    EXPECT_FALSE(global_check.flags.save_failed);
  }
}

// Catches an infinite norm that is lost on the way: the step would be applied.
TEST(AgreeOnStep, CarriesWhatIsNotFinite) {
  std::vector<LocalCheck> local(2);
  local[1].sum_of_squares = std::numeric_limits<double>::quiet_NaN();
  for (const auto& global_check : checks_of(local)) EXPECT_FALSE(std::isfinite(global_check.sum_of_squares));
}

}  // namespace
}  // namespace zeropage::engine
