#include "zeropage/plan/auto_stage.h"

#include <gtest/gtest.h>

namespace zeropage::plan {
namespace {

constexpr std::int64_t kGb = 1'000'000'000;

AutoStage choose(std::int64_t numel, int world, std::int64_t free_bytes) {
  StateOptions options;
  options.world_size = world;
  options.precision = config::Precision::kBf16;
  return choose_stage({numel, 0, 0}, options, free_bytes);
}

// A stage that gives away speed, or one that does not fit. 1B parameters in bf16 take 16 GB unsharded.
TEST(AutoStage, GoesUpAsMemoryGoesDown) {
  EXPECT_EQ(choose(kGb, 1, 10 * kGb).stage, 0);
  EXPECT_EQ(choose(kGb, 4, 80 * kGb).stage, 1);
  EXPECT_EQ(choose(kGb, 4, 24 * kGb).stage, 2);
  EXPECT_EQ(choose(kGb, 4, 10 * kGb).stage, 3);
  EXPECT_EQ(choose(kGb, 64, 24 * kGb).stage, 2) << "more ranks share the state, so that stage 2 goes further";
}

// A choice that cannot be checked, and silence where the run will probably fail.
TEST(AutoStage, SaysWhy) {
  EXPECT_NE(choose(kGb, 4, 80 * kGb).reason.find("16 GB of 80 GB"), std::string::npos)
      << choose(kGb, 4, 80 * kGb).reason;
  EXPECT_EQ(choose(kGb, 4, 10 * kGb).reason.find("too much"), std::string::npos);
  EXPECT_NE(choose(kGb, 2, 10 * kGb).reason.find("too much"), std::string::npos);
}

}  // namespace
}  // namespace zeropage::plan
