// The tables of states.
#include "zeropage/reduce/sum_state.h"

#include <gtest/gtest.h>

#include <set>
#include <utility>

#include "zeropage/base/error.h"
#include "zeropage/reduce/backward_state.h"
#include "zeropage/reduce/transition.h"

namespace zeropage::reduce {
namespace {

constexpr SumState kAll[] = {SumState::kNone, SumState::kReducing, SumState::kReady, SumState::kInvalidated};

// Catches a listener that is not notified before a sum changes (ready -> reducing, ready -> none), one that is notified
// of a sum that was not reduced (none -> ready), and two reductions of a page at the same time.
TEST(SumState, FollowsItsTable) {
  using enum SumState;
  const std::set<std::pair<SumState, SumState>> legal = {
      {kNone, kReducing},     {kNone, kInvalidated},     {kReducing, kReady},    {kReducing, kNone},
      {kReady, kInvalidated}, {kInvalidated, kReducing}, {kInvalidated, kReady}, {kInvalidated, kNone}};
  for (const SumState from : kAll) {
    for (const SumState to : kAll) EXPECT_EQ(may_follow(from, to), legal.contains({from, to}));
  }
}

// Catches an illegal transition without an error, and a message without the page and the states.
TEST(SumState, RefusesOtherTransitions) {
  EXPECT_EQ(checked_transition(SumState::kNone, SumState::kReducing, "their sum"), SumState::kReducing);
  try {
    checked_transition(SumState::kReady, SumState::kNone, "gradients of page 3: the state of their sum");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()),
              "gradients of page 3: the state of their sum cannot change from 'ready' to 'none'; this is a fault of "
              "zeropage, please report it");
  }
}

// Catches a backward that begins in another one, whose gradients would be mixed, and a table that forbids the end of
// one, or the next one after one that failed.
TEST(BackwardState, BeginsOutsideOfBackwards) {
  using enum BackwardState;
  for (const BackwardState running : {kAccumulating, kReducing}) {
    for (const BackwardState other : {kAccumulating, kReducing}) EXPECT_FALSE(may_follow(running, other));
    for (const BackwardState idle : {kNone, kUnprocessed, kEnded, kExchanged}) {
      EXPECT_TRUE(may_follow(running, idle));
      EXPECT_TRUE(may_follow(idle, running));
    }
  }
  EXPECT_THROW(checked_transition(kReducing, kAccumulating, "the state of the backward"), Error);
}

}  // namespace
}  // namespace zeropage::reduce
