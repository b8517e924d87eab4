#include "zeropage/engine/device_update.h"

#include <gtest/gtest.h>

#include <string>

#include "zeropage/base/error.h"
#include "zeropage/engine/page_update.h"

namespace zeropage::engine {
namespace {

/// The engine's error for randomly rounded state on a GPU; empty: none.
std::string refusal(config::OptimizerKind kind, config::StateDtype states, bool masters, double offloaded) {
  config::Config config;
  config.optimizer.kind = kind;
  config.state_dtype = states;
  config.fp32_masters = masters;
  if (offloaded > 0.0) {
    config.zero.offload = {.optimizer = config::OffloadDevice::kCpu, .optimizer_ratio = offloaded};
  }
  try {
    require_one_pass(config, c10::Device(c10::kCUDA, 0));
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

// Would catch an update on a GPU that reads packed moments as fp32, or masters that do not exist: everything that our
// own kernels do not update must be offloaded, or refused with an error.
TEST(UpdateOnDevice, TakesWhatItRounds) {
  using config::OptimizerKind;
  using config::StateDtype;
  const bool kernels = has_kernels(c10::Device(c10::kCUDA, 0));
  const auto says = [](const std::string& text, const char* words) { return text.find(words) != std::string::npos; };
  for (const auto states : {StateDtype::kBFloat16, StateDtype::kInt8}) {
    EXPECT_EQ(refusal(OptimizerKind::kAdamW, states, true, 0.5).empty(), kernels);
    EXPECT_EQ(refusal(OptimizerKind::kAdamW, states, true, 1.0), "");
    EXPECT_TRUE(says(refusal(OptimizerKind::kLamb, states, true, 0.0), "do not have this optimizer"));
    EXPECT_EQ(refusal(OptimizerKind::kLamb, states, true, 1.0), "");
  }
  EXPECT_EQ(refusal(OptimizerKind::kLion, StateDtype::kFloat32, false, 0.0).empty(), kernels);
  EXPECT_EQ(refusal(OptimizerKind::kLion, StateDtype::kFloat32, false, 1.0), "");
  EXPECT_TRUE(says(refusal(OptimizerKind::kLamb, StateDtype::kFloat32, false, 1.0), "need an optimizer among"));
  EXPECT_EQ(refusal(OptimizerKind::kLamb, StateDtype::kFloat32, true, 0.0), "");
  EXPECT_EQ(refusal(OptimizerKind::kClient, StateDtype::kFloat32, true, 0.0), "");
  EXPECT_FALSE(has_kernels(c10::kCPU));
}

}  // namespace
}  // namespace zeropage::engine
