#include "zeropage/formula/model_state.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "zeropage/base/error.h"

namespace zeropage::formula {
namespace {

using config::Precision;

StateBytes bytes(int stage, int world_size, Precision precision, std::int64_t accumulation_steps = 1,
                 std::optional<DType> accumulation_dtype = {}) {
  return model_state_bytes({800, 80, 8}, {stage, world_size, precision, accumulation_steps, accumulation_dtype});
}

// Catches bytes that differ from the header's table, computed by hand: 800 trainable, 80 frozen, 8 of them persistent.
TEST(ModelState, EveryStageAndPrecision) {
  EXPECT_EQ(bytes(0, 4, Precision::kFp32), (StateBytes{880 * 4, 800 * 4, 800 * 8}));
  EXPECT_EQ(bytes(1, 4, Precision::kFp32), (StateBytes{880 * 4, 800 * 4, 200 * 8}));
  EXPECT_EQ(bytes(2, 4, Precision::kFp32), (StateBytes{880 * 4, 200 * 4, 200 * 8}));
  EXPECT_EQ(bytes(3, 4, Precision::kFp32), (StateBytes{(218 + 8) * 4, 200 * 4, 200 * 8}));
  EXPECT_EQ(bytes(0, 4, Precision::kBf16), (StateBytes{880 * 2, 800 * 2, 800 * 12}));
  EXPECT_EQ(bytes(1, 4, Precision::kFp16), (StateBytes{880 * 2, 800 * 2, 200 * 12}));
  EXPECT_EQ(bytes(2, 4, Precision::kBf16), (StateBytes{880 * 2, 200 * 4, 200 * 12}));
  EXPECT_EQ(bytes(3, 4, Precision::kFp16), (StateBytes{(218 + 8) * 2, 200 * 4, 200 * 12}));
  EXPECT_EQ(bytes(3, 4, Precision::kFp16).total(), 226 * 2 + 200 * 16);
}

// By hand: Lion keeps 4 bytes in addition to the master, SGD without momentum none.
TEST(ModelState, OptimizersDifferInTheirState) {
  const auto optimizer_bytes = [](Precision precision, config::OptimizerKind kind, double momentum) {
    config::Config config;
    config.precision = precision;
    config.optimizer = {kind, {.momentum = momentum}};
    return model_state_bytes({800, 0, 0}, StateOptions::from_config(config, 1)).optimizer;
  };
  using config::OptimizerKind;
  EXPECT_EQ(optimizer_bytes(Precision::kBf16, OptimizerKind::kAdamW, 0.0), 800 * 12);
  EXPECT_EQ(optimizer_bytes(Precision::kBf16, OptimizerKind::kLion, 0.0), 800 * 8);
  EXPECT_EQ(optimizer_bytes(Precision::kFp32, OptimizerKind::kAdagrad, 0.0), 800 * 4);
  EXPECT_EQ(optimizer_bytes(Precision::kFp32, OptimizerKind::kSgd, 0.9), 800 * 4);
  EXPECT_EQ(optimizer_bytes(Precision::kBf16, OptimizerKind::kSgd, 0.0), 800 * 4);
}

// By hand: 720 elements are sharded, over 4 ranks and once more over 2 nearby ones.
TEST(ModelState, SecondShardsAreParameters) {
  StateOptions options{.stage = 3, .world_size = 4, .precision = Precision::kBf16, .second_shard_ranks = 2};
  EXPECT_EQ(model_state_bytes({640, 88, 8}, options).parameters, (180 + 360 + 8) * 2);
  options.stage = 2;
  EXPECT_EQ(model_state_bytes({640, 88, 8}, options).parameters, 728 * 2);
}

// Whole gradients that are accumulated are fp32 unless configured; shards are always fp32.
TEST(ModelState, AccumulationDecidesTheGradientTypeAtStages0And1) {
  for (int stage : {0, 1}) {
    EXPECT_EQ(bytes(stage, 2, Precision::kBf16, 4).gradients, 800 * 4);
    EXPECT_EQ(bytes(stage, 2, Precision::kBf16, 4, DType::kBFloat16).gradients, 800 * 2);
    EXPECT_EQ(bytes(stage, 2, Precision::kBf16, 1, DType::kFloat32).gradients, 800 * 2);
  }
  EXPECT_EQ(bytes(2, 2, Precision::kBf16, 4, DType::kBFloat16).gradients, 400 * 4);
}

// A single rank without accumulation keeps gradients as autograd makes them; offloaded gradients are in shards
// nevertheless.
TEST(ModelState, OneRankKeepsGradientsInTheComputeType) {
  EXPECT_EQ(bytes(3, 1, Precision::kBf16).gradients, 800 * 2);
  EXPECT_EQ(bytes(2, 1, Precision::kBf16, 4).gradients, 800 * 4);
  const auto placed = placed_state_bytes({800, 0, 0, 300}, {.stage = 2, .precision = Precision::kBf16});
  EXPECT_EQ(placed.device.gradients, 500 * 2);
  EXPECT_EQ(placed.offloaded.gradients, 300 * 4);
  config::Config config;
  config.precision = Precision::kBf16;
  EXPECT_TRUE(keeps_gradients(config));
  config.gradients.communication_dtype = DType::kFloat16;
  EXPECT_FALSE(keeps_gradients(config));
}

// 16 bytes per parameter, split as the stage says: the ZeRO paper's table for 7.5 billion parameters and 64 ranks.
TEST(ModelState, ThePublishedTableCountsShardsInTheComputeType) {
  const auto gigabytes = [](int stage) {
    const StateOptions options{
        .stage = stage, .world_size = 64, .precision = Precision::kFp16, .shard_dtype = DType::kFloat16};
    return static_cast<double>(model_state_bytes({7'500'000'000, 0, 0}, options).total()) / 1e9;
  };
  EXPECT_NEAR(gigabytes(0), 120.0, 0.05);
  EXPECT_NEAR(gigabytes(1), 31.4, 0.05);
  EXPECT_NEAR(gigabytes(2), 16.6, 0.05);
  EXPECT_NEAR(gigabytes(3), 1.9, 0.05);
}

TEST(ModelState, OneRankHoldsEverythingAndOddCountsRoundUp) {
  EXPECT_EQ(bytes(3, 1, Precision::kFp32), bytes(0, 1, Precision::kFp32));
  EXPECT_EQ(model_state_bytes({7, 0, 0}, {3, 4, Precision::kFp32}), (StateBytes{2 * 4, 2 * 4, 2 * 8}));
}

TEST(ModelState, CountsOfALayoutWithAndWithoutPadding) {
  const auto spec = [](std::int64_t numel, DType dtype, bool trainable, bool persistent) {
    return layout::ParameterSpec{"p", numel, dtype, element_bytes(dtype), 0, trainable, persistent};
  };
  const layout::Layout layout({spec(10, DType::kFloat32, true, false), spec(3, DType::kFloat32, true, true),
                               spec(5, DType::kFloat32, false, false), spec(99, DType::kOther, false, false),
                               spec(2, DType::kFloat32, true, false)},
                              {2, 1000, 16, 8});
  const ParameterCounts bare = count_parameters(layout, offloaded_pages(layout, 0.0), false);
  EXPECT_EQ(bare.trainable_numel, 15);
  EXPECT_EQ(bare.frozen_numel, 5);
  EXPECT_EQ(bare.persistent_numel, 3);
  const ParameterCounts padded = count_parameters(layout, offloaded_pages(layout, 0.0), true);
  EXPECT_EQ(padded.trainable_numel, 32 + 16);
  EXPECT_EQ(padded.frozen_numel, 16);
  EXPECT_EQ(padded.persistent_numel, 16);
}

TEST(ModelState, NonsenseIsAnError) {
  EXPECT_THROW(bytes(4, 1, Precision::kFp32), ConfigError);
  EXPECT_THROW(bytes(0, 0, Precision::kFp32), ConfigError);
  EXPECT_THROW(model_state_bytes({INT64_MAX / 2, 0, 0}, {}), ConfigError);
}

TEST(ModelState, OptionsComeFromTheConfiguration) {
  config::Config config;
  config.zero.stage = 2;
  config.precision = Precision::kFp16;
  config.batch.accumulation_steps = 3;
  config.gradients.accumulation_dtype = DType::kFloat16;
  const StateOptions options = StateOptions::from_config(config, 5);
  EXPECT_EQ(options.stage, 2);
  EXPECT_EQ(options.world_size, 5);
  EXPECT_EQ(options.precision, Precision::kFp16);
  EXPECT_EQ(options.accumulation_steps, 3);
  EXPECT_EQ(options.accumulation_dtype, DType::kFloat16);
}

// By hand: 800 elements train, 8 stay whole, 200 are offloaded. Catches bytes that are lost or counted in both places.
TEST(PlacedState, MovesWhatIsOffloaded) {
  const ParameterCounts counts{800, 80, 8, 200};
  StateOptions options{.stage = 3, .world_size = 2, .precision = Precision::kBf16};
  options.offload_parameters = true;
  const PlacedBytes placed = placed_state_bytes(counts, options);
  EXPECT_EQ(placed.offloaded, (StateBytes{2 * 436, 4 * 100, 12 * 100}));
  EXPECT_EQ(placed.device, (StateBytes{2 * 8, 4 * 300, 12 * 300}));
  options.stage = 1;
  options.offload_parameters = false;
  EXPECT_EQ(placed_state_bytes(counts, options).offloaded, (StateBytes{0, 0, 12 * 100}));
}

// Catches pages that are taken from the wrong end, and pages without optimizer state that count.
TEST(PlacedState, OffloadsWholePagesFromTheEnd) {
  std::vector<layout::ParameterSpec> specs;
  for (int i = 0; i < 5; ++i) specs.push_back({.name = fmt::format("p{}", i), .numel = 1000, .trainable = i != 4});
  const layout::Layout layout(specs, {.world_size = 2, .page_numel = 1});
  using Pages = std::vector<bool>;
  EXPECT_EQ(offloaded_pages(layout, 0.0), (Pages{false, false, false, false, false}));
  EXPECT_EQ(offloaded_pages(layout, 0.1), (Pages{false, false, false, false, false}));
  EXPECT_EQ(offloaded_pages(layout, 0.3), (Pages{false, false, false, true, false}));
  EXPECT_EQ(offloaded_pages(layout, 0.8), (Pages{false, true, true, true, false}));
  EXPECT_EQ(offloaded_pages(layout, 1.0), (Pages{true, true, true, true, false}));
  EXPECT_EQ(count_parameters(layout, offloaded_pages(layout, 0.5), false).offloaded_numel, 2000);
}

// Would catch plans that count moments of 2 or 1 byte as fp32: masters 4, two moments each of 2, or of 1 and one per
// 256.
TEST(ModelState, PackedMomentsTakeTheirBytes) {
  StateOptions options{.stage = 1, .world_size = 2, .precision = Precision::kBf16};
  const ParameterCounts counts{.trainable_numel = 2000};
  options.state_dtype = config::StateDtype::kBFloat16;
  EXPECT_EQ(model_state_bytes(counts, options).optimizer, 1000 * (4 + 2 * 2));
  options.state_dtype = config::StateDtype::kInt8;
  EXPECT_EQ(model_state_bytes(counts, options).optimizer, 1000 * 4 + 2 * (1000 + 4));
  options.fp32_masters = false;
  EXPECT_EQ(model_state_bytes(counts, options).optimizer, 2 * (1000 + 4));
}

}  // namespace
}  // namespace zeropage::formula
