// Tests of backwards that the program runs itself: parameter.grad() after `loss.backward()`, against plain libtorch.
#include <torch/nn/utils/clip_grad.h>

#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "zeropage/cpp/test_training.h"

namespace zeropage {
namespace {

constexpr double kRate = 0.25;
constexpr double kClip = 0.05;  // below the norms of the model

Config accumulating_config(int stage, int accumulation_steps = 1, const char* more = "{}") {
  return Config::from_json(fmt::format(R"({{"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": {},
        "optimizer": {{"type": "SGD", "params": {{"lr": {}}}}},
        "zero_optimization": {{"stage": {}, "stage3_param_persistence_threshold": 8}}}})",
                                       accumulation_steps, kRate, stage))
      .with(more);
}

/// Gradients of the loss of both ranks, over several steps.
std::vector<at::Tensor> plain_gradients(int from, int to) {
  auto model = make_model();
  for (int step = from; step < to; ++step) (whole_loss(model, step) / (to - from)).backward();
  std::vector<at::Tensor> gradients;
  for (const auto& parameter : model->parameters()) gradients.push_back(parameter.grad());
  return gradients;
}

bool none_has_a_gradient(const torch::nn::Sequential& model) {
  for (const auto& parameter : model->parameters()) {
    if (parameter.grad().defined()) return false;
  }
  return true;
}

void expect_gradients(const torch::nn::Sequential& model, const std::vector<at::Tensor>& expected) {
  std::vector<at::Tensor> found;
  for (const auto& parameter : model->parameters()) {
    ASSERT_TRUE(parameter.grad().defined());
    found.push_back(parameter.grad().clone());
  }
  expect_equal(found, expected);
}

template <class Body>
void at_every_stage(Body body) {
  for (const int stage : {0, 1, 2, 3}) {
    SCOPED_TRACE(fmt::format("stage {}", stage));
    on_two_ranks([&](int rank, const Options& options) { body(stage, rank, options); });
  }
}

// Catches a gradient of one rank only, or no gradient, when backward returns; and a gradient that exists within a
// window.
TEST(OwnBackward, TheMeanIsThereAtTheEndOfAWindow) {
  const auto expected = plain_gradients(0, 2);
  at_every_stage([&](int stage, int rank, const Options& options) {
    auto model = make_model();
    auto engine = initialize(*model, accumulating_config(stage, 2), options);
    for (int step = 0; step < 2; ++step) {
      EXPECT_TRUE(none_has_a_gradient(model));
      loss_of(model, batch_of(step, rank)).backward();
      if (step == 1) expect_gradients(model, expected);
      engine.step();
    }
    EXPECT_TRUE(none_has_a_gradient(model));
    EXPECT_EQ(engine.global_steps(), 1);
  });
}

// Catches a norm of zero or of one shard, and clipping that has no effect.
TEST(OwnBackward, LibtorchsClippingTakesEffect) {
  auto plain = make_model();
  std::vector<double> norms;
  for (int step = 0; step < 3; ++step) {
    plain->zero_grad();
    whole_loss(plain, step).backward();
    norms.push_back(torch::nn::utils::clip_grad_norm_(plain->parameters(), kClip));
    c10::AutoGradMode no_grad(false);
    for (auto& parameter : plain->parameters()) parameter.sub_(kRate * parameter.grad());
  }
  at_every_stage([&](int stage, int rank, const Options& options) {
    auto model = make_model();
    auto engine = initialize(*model, accumulating_config(stage), options);
    for (int step = 0; step < 3; ++step) {
      loss_of(model, batch_of(step, rank)).backward();
      const double norm = torch::nn::utils::clip_grad_norm_(model->parameters(), kClip);
      EXPECT_GT(norm, kClip);
      EXPECT_NEAR(norm, norms[step], 1e-5 * norms[step]);
      engine.step();
    }
    expect_equal(model->parameters(), plain->parameters());
  });
}

// Catches gradients that still contain the loss scale, and gradients of an unscaled loss that are divided by it.
TEST(OwnBackward, LossesOfFp16MayBeScaledOrNot) {
  const auto expected = plain_gradients(0, 1);
  at_every_stage([&](int stage, int rank, const Options& options) {
    auto model = make_model();
    auto engine = initialize(
        *model, accumulating_config(stage, 1, R"({"fp16": {"enabled": true, "initial_scale_power": 10}})"), options);
    for (const bool scaled : {true, false}) {
      const auto loss = loss_of(model, batch_of(0, rank).to(at::kHalf));
      (scaled ? engine.scale(loss) : loss).backward();
      std::size_t next = 0;
      for (const auto& parameter : model->parameters()) {
        EXPECT_TRUE(at::allclose(parameter.grad().to(at::kFloat), expected[next++], 1e-2, 5e-3));
      }
      engine.barrier();  // before a rank frees what another one reads
      engine.zero_grad();
    }
  });
}

// Catches a window that begins with the gradients of the previous one, and a discarded backward that still counts.
TEST(OwnBackward, ForgottenGradientsDoNotCount) {
  const auto expected = plain_gradients(1, 2);
  at_every_stage([&](int stage, int rank, const Options& options) {
    auto model = make_model();
    auto engine = initialize(*model, accumulating_config(stage), options);
    loss_of(model, batch_of(0, rank)).backward();
    engine.barrier();  // before a rank frees what another one reads
    engine.zero_grad();
    EXPECT_TRUE(none_has_a_gradient(model));
    loss_of(model, batch_of(1, rank)).backward();
    expect_gradients(model, expected);
  });
}

}  // namespace
}  // namespace zeropage
