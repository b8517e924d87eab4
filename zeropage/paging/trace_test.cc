// The prediction of what comes next.
#include "zeropage/paging/trace.h"

#include <gtest/gtest.h>

namespace zeropage::paging {
namespace {

Trace trace_of(const std::vector<int>& sequence, int pages = 4) {
  Trace trace(pages);
  for (int page : sequence) trace.note(page);
  trace.end_pass();
  return trace;
}

// Catches a prediction that repeats a page for each operator, or that is there before a pass has ended.
TEST(Trace, PredictsTheLastPass) {
  Trace trace(3);
  EXPECT_FALSE(trace.as_predicted());
  for (int page : {0, 0, 1, 1, 1, 2, 1}) trace.note(page);
  EXPECT_TRUE(trace.predicted().empty());
  EXPECT_EQ(trace.hash(), 0u);
  trace.end_pass();
  EXPECT_EQ(trace.predicted(), (std::vector<int>{0, 1, 2, 1}));
  EXPECT_TRUE(trace.as_predicted());
}

// Catches uses of the past that are counted as future ones: eviction would keep the wrong page.
TEST(Trace, NextUseMovesOn) {
  Trace trace = trace_of({0, 1, 2, 1});
  EXPECT_EQ(trace.next_use(1), 1);
  trace.note(0);
  trace.note(1);
  EXPECT_EQ(trace.position(), 2);
  EXPECT_EQ(trace.next_use(1), 3);
  EXPECT_EQ(trace.next_use(0), Trace::kNever);
  EXPECT_EQ(trace.next_use(3), Trace::kNever);
  EXPECT_TRUE(trace.as_predicted());
}

// Catches a pass that skips or repeats pages and is never found again in the prediction.
TEST(Trace, FindsItsPlaceAgainOffCourse) {
  Trace trace = trace_of({0, 1, 2, 3, 1});
  trace.note(0);
  trace.note(2);  // 1 was skipped
  EXPECT_FALSE(trace.as_predicted());
  EXPECT_EQ(trace.position(), 3);
  trace.note(0);  // only earlier: starts again from there
  EXPECT_EQ(trace.position(), 1);
  trace.note(1);
  EXPECT_EQ(trace.position(), 2);
  trace.end_pass();
  EXPECT_EQ(trace.predicted(), (std::vector<int>{0, 2, 0, 1}));
  EXPECT_TRUE(trace.as_predicted());
}

// Catches a pass without operators (a second step) that forgets what was learned.
TEST(Trace, AnEmptyPassChangesNothing) {
  Trace trace = trace_of({2, 1});
  const auto hash = trace.hash();
  trace.end_pass();
  EXPECT_EQ(trace.predicted(), (std::vector<int>{2, 1}));
  EXPECT_EQ(trace.hash(), hash);
}

// Catches hashes by which ranks with different passes believe each other to be on the same one.
TEST(Trace, HashTellsSequencesApart) {
  EXPECT_EQ(trace_of({0, 1, 2}).hash(), trace_of({0, 0, 1, 2}).hash());
  EXPECT_NE(trace_of({0, 1, 2}).hash(), trace_of({0, 2, 1}).hash());
  EXPECT_NE(trace_of({0, 1}).hash(), trace_of({0, 1, 0}).hash());
  EXPECT_NE(trace_of({0, 256}, 300).hash(), trace_of({1, 0}, 300).hash());
}

// Catches memory that grows with a pass that never ends (evaluation without steps).
TEST(Trace, ALongPassIsBounded) {
  Trace trace(2);
  for (int i = 0; i < 3'000'000; ++i) trace.note(i % 2);
  trace.end_pass();
  EXPECT_LT(trace.predicted().size(), 2'000'000u);
  EXPECT_EQ(trace.predicted().front(), 0);
}

}  // namespace
}  // namespace zeropage::paging
