#include "zeropage/formula/automatic.h"

#include <gtest/gtest.h>

#include <map>

namespace zeropage::formula {
namespace {

constexpr std::int64_t kGb = 1'000'000'000;

AutoStage choose(std::int64_t numel, int world, std::int64_t free_bytes) {
  StateOptions options;
  options.world_size = world;
  options.precision = config::Precision::kBf16;
  return choose_stage({numel, 0, 0}, options, free_bytes);
}

// Catches a stage that is slower than necessary, or that does not fit. 1B parameters in bf16 take 16 GB unsharded.
TEST(AutoStage, GoesUpAsMemoryGoesDown) {
  EXPECT_EQ(choose(kGb, 1, 10 * kGb).stage, 0);
  EXPECT_EQ(choose(kGb, 4, 80 * kGb).stage, 1);
  EXPECT_EQ(choose(kGb, 4, 24 * kGb).stage, 2);
  EXPECT_EQ(choose(kGb, 4, 10 * kGb).stage, 3);
  EXPECT_EQ(choose(kGb, 64, 24 * kGb).stage, 2) << "more ranks share the state, so that it fits at stage 2";
}

// Catches a choice without figures, and no warning where the run will probably fail.
TEST(AutoStage, SaysWhy) {
  EXPECT_NE(choose(kGb, 4, 80 * kGb).reason.find("16 GB of 80 GB"), std::string::npos)
      << choose(kGb, 4, 80 * kGb).reason;
  EXPECT_EQ(choose(kGb, 4, 10 * kGb).reason.find("too much"), std::string::npos);
  EXPECT_NE(choose(kGb, 2, 10 * kGb).reason.find("too much"), std::string::npos);
}

std::map<std::string, std::string> choices(const std::string& zero, int world, FreeMemory memory,
                                           const std::string& batch = R"("train_micro_batch_size_per_gpu": 1)") {
  const auto config = config::Config::from_json(
      "{" + batch + R"(, "bf16": {"enabled": true}, "zero_optimization": {)" + zero + "}}", world);
  std::map<std::string, std::string> values;
  config::Planned planned;
  for (const AutoChoice& choice : choose_automatic(config, world, {kGb, 0}, 50'000'000, memory)) {
    const auto* number = std::get_if<std::int64_t>(&choice.value);
    values[choice.path] = number ? std::to_string(*number) : std::get<std::string>(choice.value);
    planned[choice.path] = choice.value;
    EXPECT_FALSE(choice.reason.empty()) << choice.path;
  }
  EXPECT_TRUE(config.with_planned(planned).automatic.empty()) << "something was left open";
  return values;
}

constexpr const char* kOpenOffload =
    R"("stage": "auto", "offload_optimizer": {"device": "auto"}, "offload_param": {"device": "auto"})";
const std::string kOptimizer = "zero_optimization.offload_optimizer.device";
const std::string kParameters = "zero_optimization.offload_param.device";
const std::string kStage = "zero_optimization.stage";

// Catches offload where memory suffices, which costs time, or no offload where it does not. 1B parameters take 16 GB;
// 12 GB are the optimizer's.
TEST(Automatic, OffloadsWhatDoesNotFit) {
  auto chosen = choices(kOpenOffload, 1, {40 * kGb, 100 * kGb});
  EXPECT_EQ(chosen[kOptimizer] + chosen[kParameters], "nonenone");
  chosen = choices(kOpenOffload, 1, {12 * kGb, 100 * kGb});
  EXPECT_EQ(chosen[kStage], "0");
  EXPECT_EQ(chosen[kOptimizer] + chosen[kParameters], "cpunone");
  chosen = choices(kOpenOffload, 1, {2 * kGb, 100 * kGb});
  EXPECT_EQ(chosen[kStage], "3");
  EXPECT_EQ(chosen[kOptimizer] + chosen[kParameters], "cpucpu");
  EXPECT_EQ(choices(R"("stage": "auto", "offload_param": {"device": "cpu"})", 2, {80 * kGb, 100 * kGb})[kStage], "3");
}

// Catches state that is offloaded from a host to the same host, or to a drive that the configuration does not name.
TEST(Automatic, AHostOffloadsOnlyToADrive) {
  const FreeMemory host{6 * kGb, 6 * kGb, true};
  EXPECT_EQ(choices(kOpenOffload, 2, host)[kOptimizer], "none");
  auto chosen = choices(R"("stage": 2, "offload_optimizer": {"device": "auto", "nvme_path": "/drive"})", 2, host);
  EXPECT_EQ(chosen[kOptimizer], "nvme");
}

// Catches a host without room for the undo log of updates overlapped with the backward: 12 GB and a quarter of 14.
TEST(Automatic, TheHostHasRoomForTheUndoLog) {
  const char* open = R"("stage": 0, "offload_optimizer": {"device": "auto", "nvme_path": "/drive"})";
  EXPECT_EQ(choices(open, 1, {12 * kGb, 30 * kGb})[kOptimizer], "nvme");
  EXPECT_EQ(choices(open, 1, {12 * kGb, 32 * kGb})[kOptimizer], "cpu");
}

// Catches buckets as large as the device's memory, or smaller than a parameter that must be gathered whole.
TEST(Automatic, BucketsFollowFreeMemory) {
  const char* open = R"("stage": 3, "reduce_bucket_size": "auto", "allgather_bucket_size": "auto",
      "stage3_prefetch_bucket_size": "auto", "stage3_max_live_parameters": "auto")";
  auto roomy = choices(open, 2, {80 * kGb, 80 * kGb});
  EXPECT_EQ(roomy["zero_optimization.reduce_bucket_size"], std::to_string(layout::default_page_numel(kGb)));
  EXPECT_EQ(roomy["zero_optimization.stage3_max_live_parameters"], std::to_string(kGb));
  EXPECT_EQ(roomy["zero_optimization.stage3_prefetch_bucket_size"], "50000000");
  auto tight = choices(open, 2, {kGb / 4, kGb});
  EXPECT_EQ(tight["zero_optimization.allgather_bucket_size"], std::to_string(kGb / 4 / 16 / 3 / 2));
  EXPECT_EQ(tight["zero_optimization.stage3_max_live_parameters"], "100000000") << "two of the largest parameter";
}

// Catches a batch size that differs from what the program makes.
TEST(Automatic, BatchSizesFollowFromEachOther) {
  const FreeMemory memory{80 * kGb, 80 * kGb};
  auto chosen = choices("", 2, memory, R"("train_batch_size": 8, "train_micro_batch_size_per_gpu": "auto")");
  EXPECT_EQ(chosen["train_micro_batch_size_per_gpu"], "4");
  chosen = choices("", 2, memory, R"("train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto")");
  EXPECT_EQ(chosen["train_micro_batch_size_per_gpu"], "1");
  EXPECT_EQ(chosen["train_batch_size"], "2");
}

}  // namespace
}  // namespace zeropage::formula
