#include "zeropage/cpp/plan.h"

#include <gtest/gtest.h>
#include <torch/nn/modules/linear.h>

#include "zeropage/base/error.h"
#include "zeropage/cpp/config.h"

namespace zeropage {
namespace {

// Catches a plan that differs from the command's, or whose configuration cannot be used.
TEST(CppPlan, SaysWhatTheCommandSays) {
  const TrainingPlan made = make_plan("7B", {.num_gpus = 4});
  EXPECT_NE(made.text.find("DDP"), std::string::npos);
  EXPECT_NE(made.text.find("112 GB"), std::string::npos);
  EXPECT_NO_THROW(Config::from_json(make_plan("7B", {.num_gpus = 8, .device = "H100"}).config));
  const auto coded = make_plan("70B", {.num_gpus = 8,
                                       .num_nodes = 2,
                                       .device = "H100",
                                       .quantized_weights = true,
                                       .quantized_gradients = true,
                                       .hpz_partition_size = 4})
                         .config;
  for (const char* key : {"zero_quantized_weights", "zero_quantized_gradients", "zero_hpz_partition_size"}) {
    EXPECT_NE(coded.find(key), std::string::npos) << coded;
  }
  EXPECT_TRUE(make_plan("100T", {.device = "4090"}).config.empty());
  EXPECT_THROW(make_plan("7B", {.figures = {{"device_memory", "1GB"}}}), ConfigError);
}

// Catches biases, frozen parameters, or shared ones that are counted wrongly.
TEST(CppPlan, CountsAModulesParametersOnce) {
  torch::nn::Linear layer(100, 50);
  layer->weight.set_requires_grad(false);
  const TrainingPlan made = make_plan(*layer, {.precision = "fp32"});
  EXPECT_NE(made.json.find("\"parameters\": 5050"), std::string::npos) << made.json;
  EXPECT_NE(made.json.find("\"trainable\": 50"), std::string::npos);
}

}  // namespace
}  // namespace zeropage
