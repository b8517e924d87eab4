/// Would catch: suggestions that are silly (nothing in common), case-sensitive, or slow on huge keys.
#include "zeropage/base/suggest.h"

#include <gtest/gtest.h>

namespace zeropage {
namespace {

const std::vector<std::string> kKeys = {"stage", "overlap_comm", "reduce_scatter", "reduce_bucket_size"};

TEST(Nearest, finds_typos_swaps_and_other_case) {
  EXPECT_EQ(nearest("stgae", kKeys), "stage");
  EXPECT_EQ(nearest("overlapp_com", kKeys), "overlap_comm");
  EXPECT_EQ(nearest("Reduce_Scatter", kKeys), "reduce_scatter");
  EXPECT_EQ(nearest("reduce_bucket", kKeys), "") << "a word without a third of its letters is too different";
}

TEST(Nearest, is_silent_when_nothing_is_near) {
  EXPECT_EQ(nearest("xyz", kKeys), "");
  EXPECT_EQ(nearest("", kKeys), "");
  EXPECT_EQ(nearest(std::string(1 << 20, 's'), kKeys), "");
  EXPECT_EQ(nearest("q", {"a", "b"}), "") << "replacing the whole word is no suggestion";
}

}  // namespace
}  // namespace zeropage
