#include "zeropage/layout/whole_pages.h"

#include <gtest/gtest.h>

namespace zeropage::layout {
namespace {

// Would catch pages of a matrix or two, of which most lie on two ranks; and frames that hold a large part of a large
// model.
TEST(WholePages, HoldSeveralParametersOfEachRank) {
  EXPECT_EQ(page_numel_for_whole_parameters(100'000'000, 1'000'000, 2, 1), 8'000'000);
  EXPECT_EQ(page_numel_for_whole_parameters(10'000'000, 400'000, 2, 3), 2'500'000);
  EXPECT_EQ(page_numel_for_whole_parameters(7'000'000'000, 45'000'000, 8, 1), 1'440'000'000);
  EXPECT_EQ(page_numel_for_whole_parameters(7'000'000'000, 45'000'000, 8, 3), 50'000'000);
  EXPECT_EQ(page_numel_for_whole_parameters(100'000'000, 1'000, 2, 1), 0);
  EXPECT_EQ(page_numel_for_whole_parameters(100'000'000, 1'000'000, 2, 0), 0);
}

}  // namespace
}  // namespace zeropage::layout
