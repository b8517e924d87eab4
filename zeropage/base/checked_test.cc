#include "zeropage/base/checked.h"

#include <gtest/gtest.h>

#include "zeropage/base/error.h"

namespace zeropage {
namespace {

// Would catch a size that wraps around to a small or negative number.
TEST(Checked, OverflowAndNegativeAreErrors) {
  EXPECT_EQ(checked_add(INT64_MAX - 1, 1, "x"), INT64_MAX);
  EXPECT_THROW(checked_add(INT64_MAX, 1, "x"), ConfigError);
  EXPECT_THROW(checked_add(-1, 1, "x"), ConfigError);
  EXPECT_EQ(checked_mul(1LL << 31, 1LL << 31, "x"), 1LL << 62);
  EXPECT_THROW(checked_mul(1LL << 32, 1LL << 31, "x"), ConfigError);
  EXPECT_THROW(checked_mul(-1, -1, "x"), ConfigError);
}

TEST(Checked, RoundUp) {
  EXPECT_EQ(checked_round_up(0, 64, "x"), 0);
  EXPECT_EQ(checked_round_up(1, 64, "x"), 64);
  EXPECT_EQ(checked_round_up(64, 64, "x"), 64);
  EXPECT_EQ(checked_round_up(65, 64, "x"), 128);
  EXPECT_THROW(checked_round_up(INT64_MAX, 2, "x"), ConfigError);
  EXPECT_THROW(checked_round_up(1, 0, "x"), ConfigError);
  EXPECT_EQ(ceil_div(INT64_MAX, 1), INT64_MAX);
  EXPECT_EQ(ceil_div(INT64_MAX, 2), INT64_MAX / 2 + 1);
}

// The message must say which quantity it was.
TEST(Checked, MessageNamesTheQuantity) {
  try {
    checked_mul(INT64_MAX, 2, "page of 'wte.weight'");
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("wte.weight"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace zeropage
