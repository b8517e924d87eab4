// The order of reductions, without tensors.
#include "zeropage/reduce/reduction_order.h"

#include <gtest/gtest.h>

#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::reduce {
namespace {

/// The pages of one backward.
std::vector<int> run_order(ReductionOrder& order) {
  std::vector<int> pages;
  for (auto page = order.next(); page; page = order.next()) {
    pages.push_back(*page);
    order.advance();
  }
  order.restart();
  return pages;
}

// Catches a first order that begins with the layers that autograd reaches last, and a page that is added in between.
TEST(ReductionOrder, BeginsWithTheLastPage) {
  ReductionOrder order({0, 2, 3});
  EXPECT_EQ(run_order(order), (std::vector<int>{3, 2, 0}));
  order.add(1);
  EXPECT_EQ(run_order(order), (std::vector<int>{3, 2, 0, 1}));
  EXPECT_EQ(run_order(order), (std::vector<int>{3, 2, 0, 1})) << "every backward has all of them";
}

// Catches ranks that keep different orders, a page that is lost because rank 0 did not complete it, and one that is in
// the order twice because it became complete twice (a second gradient after its reduction).
TEST(ReductionOrder, SettlesOnThatOfRank0) {
  const auto body = [](comm::Communicator& communicator) {
    ReductionOrder order({0, 1, 2, 3});
    const bool first = communicator.rank() == 0;
    for (const int page : first ? std::vector<int>{1, 3, 1} : std::vector<int>{0, 1, 2, 3}) order.note_complete(page);
    EXPECT_FALSE(order.is_settled());
    order.settle(communicator);
    EXPECT_TRUE(order.is_settled());
    EXPECT_EQ(order.pages(), (std::vector<int>{1, 3, 2, 0}));
    order.note_complete(0);
    EXPECT_EQ(run_order(order), (std::vector<int>{1, 3, 2, 0}));
    communicator.barrier({"done"});
  };
  for (const auto& outcome : comm::run_threads(3, comm::kRankTimeout, body)) EXPECT_EQ(outcome, "");
}

// Catches a page that is reduced with zeros for ever though no rank trains it any more, one that is left out too early,
// and one that does not return with its next gradient.
TEST(ReductionOrder, LeavesOutPagesWithoutGradients) {
  ReductionOrder order({0, 1});
  for (int backward = 0; backward < ReductionOrder::kBackwardsWithoutGradient; ++backward) {
    EXPECT_EQ(run_order(order), (std::vector<int>{1, 0}));
    order.note_backward(0, true);
    order.note_backward(1, false);
  }
  EXPECT_EQ(run_order(order), std::vector<int>{0});
  EXPECT_EQ(order.pages(), (std::vector<int>{1, 0})) << "it may get gradients again";
  order.note_backward(1, true);
  EXPECT_EQ(run_order(order), (std::vector<int>{1, 0}));
}

}  // namespace
}  // namespace zeropage::reduce
