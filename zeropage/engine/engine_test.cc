// The order of what a step does, on one rank.
#include "zeropage/engine/engine.h"

#include <ATen/ops/add.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>
#include <gtest/gtest.h>

#include <cmath>

#include "zeropage/base/error.h"
#include "zeropage/engine/test_model.h"

namespace zeropage::engine {
namespace {

config::Config engine_config() {
  config::Config config;
  config.batch.micro_batch_size = 2;
  config.batch.train_batch_size = 2;
  config.optimizer.kind = config::OptimizerKind::kSgd;
  config.zeropage.page_numel = 1;  // a page per parameter
  return config;
}

struct Training {
  explicit Training(const config::Config& config = engine_config())
      : engine(model.inputs, {{.lr = 0.5, .weight_decay = 0.0}}, config, model.communicator, c10::kCPU) {}

  /// The gradient of each element of parameter i is `values[i]`; NaN: it gets none.
  void backward(const std::vector<float>& values) {
    at::Tensor loss;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (std::isnan(values[i])) continue;
      const auto term = at::sum(at::mul(model.parameters[i], values[i]));
      loss = loss.defined() ? at::add(loss, term) : term;
    }
    engine.backward(loss);
  }

  bool all_are(int parameter, float value) const {
    return at::eq(model.parameters[parameter].detach(), value).all().item<bool>();
  }

  TestModel model{{100, 200}};
  Engine engine;
};

constexpr float kNone = NAN;

// Catches a step that counts although it raised, so that a program that continues is one micro step ahead.
TEST(Engine, AStepWithoutABackwardChangesNothing) {
  Training training;
  EXPECT_THROW(training.engine.step(), UsageError);
  EXPECT_EQ(training.engine.micro_steps(), 0);
  training.backward({1.0F, 1.0F});
  EXPECT_TRUE(training.engine.step());
  EXPECT_EQ(training.engine.micro_steps(), 1);
  EXPECT_EQ(training.engine.global_steps(), 1);
  EXPECT_EQ(training.engine.global_samples(), 2);
  EXPECT_TRUE(training.all_are(0, 0.5F));
}

// Catches a skipped step that changes parameters, counts as applied, keeps its gradients for the next one, or forgets
// which parameter overflowed.
TEST(Engine, ASkippedStepChangesNothingButItsCounts) {
  auto config = engine_config();
  config.precision = config::Precision::kBf16;
  Training training(config);
  training.backward({1.0F, INFINITY});
  EXPECT_TRUE(training.engine.step());
  const auto& last = training.engine.last_step();
  EXPECT_FALSE(last.applied);
  EXPECT_TRUE(last.overflow);
  EXPECT_EQ(last.overflow_parameter, "p1");
  EXPECT_EQ(training.engine.skipped_steps(), 1);
  EXPECT_TRUE(training.all_are(0, 1.0F));
  EXPECT_TRUE(training.all_are(1, 1.0F));
  training.backward({1.0F, 1.0F});
  training.engine.step();
  EXPECT_TRUE(training.engine.last_step().applied);
  EXPECT_TRUE(training.all_are(0, 0.5F));
  EXPECT_TRUE(training.all_are(1, 0.5F));
  EXPECT_EQ(training.engine.global_steps(), 2);
}

// Catches an update of a parameter that got no gradient, and a norm that is that of the clipped gradients.
TEST(Engine, UpdatesWhatGotAGradientAndClipsByTheNorm) {
  auto config = engine_config();
  config.gradients.clipping = 1.0;
  Training training(config);
  training.backward({3.0F, kNone});
  training.engine.step();
  const auto& last = training.engine.last_step();
  ASSERT_TRUE(last.gradient_norm);
  EXPECT_DOUBLE_EQ(*last.gradient_norm, 30.0);  // of 100 elements of 3
  EXPECT_NEAR(last.clip_coefficient, 1.0 / 30.0, 1e-6);
  EXPECT_NEAR(training.model.parameters[0][0].item<float>(), 1.0 - 0.5 * 3.0 / 30.0, 1e-6);
  EXPECT_TRUE(training.all_are(1, 1.0F));
}

// Catches a window that ends early or late, micro steps whose gradients are lost, and a mean over the wrong number.
TEST(Engine, AWindowAddsUpItsMicroSteps) {
  auto config = engine_config();
  config.batch.accumulation_steps = 2;
  config.batch.train_batch_size = 4;
  Training training(config);
  training.backward({1.0F, 1.0F});
  EXPECT_FALSE(training.engine.step());
  EXPECT_FALSE(training.engine.window_is_new());
  EXPECT_TRUE(training.all_are(0, 1.0F)) << "no update before the window ends";
  training.backward({3.0F, 1.0F});
  EXPECT_TRUE(training.engine.step());
  EXPECT_TRUE(training.engine.window_is_new());
  EXPECT_TRUE(training.all_are(0, 0.0F)) << "1 - 0.5 * (1 + 3) / 2";
  EXPECT_EQ(training.engine.global_samples(), 4);
}

// Catches an engine that has ended and still trains, or whose parameters have lost their values.
TEST(Engine, KeepsItsParametersWhenItEnds) {
  Training training;
  training.backward({1.0F, 1.0F});
  training.engine.step();
  training.engine.keep_parameters_only();
  EXPECT_THROW(training.engine.step(), UsageError);
  EXPECT_TRUE(training.all_are(0, 0.5F));
}

}  // namespace
}  // namespace zeropage::engine
