// The table of a sum's states.
#include "zeropage/reduce/sum_state.h"

#include <gtest/gtest.h>

#include <set>
#include <utility>

#include "zeropage/base/error.h"

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
  EXPECT_EQ(checked_transition(SumState::kNone, SumState::kReducing, "gradients of page 3"), SumState::kReducing);
  try {
    checked_transition(SumState::kReady, SumState::kNone, "gradients of page 3");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()),
              "gradients of page 3: the state of their sum cannot change from 'ready' to 'none'; this is a fault of "
              "zeropage, please report it");
  }
}

}  // namespace
}  // namespace zeropage::reduce
