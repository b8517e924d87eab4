// Tests of full and local values, scaled losses and parameters that are added later, against plain libtorch.
#include <torch/nn/modules/batchnorm.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>

#include <memory>
#include <string>

#include "zeropage/base/error.h"
#include "zeropage/cpp/test_training.h"

namespace zeropage {
namespace {

std::string adam_config(int stage) {
  return R"({"train_micro_batch_size_per_gpu": 2, "optimizer": {"type": "Adam", "params": {"lr": 0.125}},
    "zero_optimization": {"stage": )" +
         std::to_string(stage) + R"(, "stage3_param_persistence_threshold": 0}})";
}

// Catches values of another parameter, of one rank's part, or from before the step.
TEST(Values, AreThoseOfPlainLibtorch) {
  auto plain = make_model();
  torch::optim::Adam optimizer(plain->parameters(), 0.125);
  train_by_libtorch(plain, optimizer, 0, 1);
  optimizer.zero_grad();
  whole_loss(plain, 1).backward();
  const auto mean_of = [](torch::optim::Adam& adam, const at::Tensor& parameter) {
    const auto& state = *adam.state().at(parameter.unsafeGetTensorImpl());
    return static_cast<const torch::optim::AdamParamState&>(state).exp_avg();
  };
  for (const bool object : {false, true}) {
    for (const int stage : {0, 2, 3}) {
      on_two_ranks([&](int rank, Options options) {
        auto model = make_model();
        if (object) options.optimizer = std::make_shared<torch::optim::Adam>(model->parameters(), 0.125);
        auto engine = initialize(*model, Config::from_json(adam_config(stage)), options);
        train(engine, model, 0, 1, rank);
        engine.scale(loss_of(model, batch_of(1, rank))).backward();
        for (std::size_t i = 0; i < 4; ++i) {
          const at::Tensor parameter = model->parameters()[i];
          const at::Tensor expected = plain->parameters()[i];
          expect_equal({engine.safe_get_full_fp32_param(parameter), engine.safe_get_full_grad(parameter),
                        engine.safe_get_full_optimizer_state(parameter, "exp_avg")},
                       {expected, expected.grad(), mean_of(optimizer, expected)});
          const at::Tensor moved = at::full(parameter.sizes(), 0.5);
          engine.safe_set_full_optimizer_state(parameter, moved, "exp_avg");
          EXPECT_TRUE(engine.safe_get_full_optimizer_state(parameter, "exp_avg").equal(moved));
          const at::Tensor local = engine.safe_get_local_optimizer_state(parameter, "exp_avg");
          if (local.defined()) {
            EXPECT_TRUE(local.eq(0.5).all().item<bool>());
          }
        }
        EXPECT_DOUBLE_EQ(engine.mean_over_ranks(1.0 + rank), 1.5);
        engine.barrier();
      });
    }
  }
}

// Catches a layer that was added after initialize and is not trained, not reported, or trained with other
// hyperparameters.
TEST(Values, AddedParametersTrain) {
  auto plain = make_model();
  torch::nn::Linear plain_layer(3, 2);
  const auto fill = [](torch::nn::Linear& layer) {
    c10::AutoGradMode no_grad(false);
    layer->weight.fill_(0.25);
    layer->bias.fill_(0.125);
  };
  fill(plain_layer);
  torch::optim::SGD first(plain->parameters(), 0.25);
  torch::optim::SGD second(plain_layer->parameters(), 0.125);
  train_by_libtorch(plain, first, 0, 1);
  for (int step = 1; step < 3; ++step) {
    first.zero_grad();
    second.zero_grad();
    plain_layer->forward(plain->forward(at::cat({batch_of(step, 0), batch_of(step, 1)}))).square().mean().backward();
    first.step();
    second.step();
  }
  for (const bool object : {false, true}) {
    on_two_ranks([&](int rank, Options options) {
      auto model = make_model();
      const auto config =
          Config::from_json(adam_config(3)).with(R"({"optimizer": {"type": "SGD", "params": {"lr": 0.25}}})");
      if (object) options.optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.25);
      auto engine = initialize(*model, config, options);
      train(engine, model, 0, 1, rank);
      torch::nn::Linear layer(3, 2);
      fill(layer);
      model->push_back(layer);
      EXPECT_THROW(engine.add_parameters({}), UsageError);
      engine.add_parameters({.parameters = layer->parameters(), .lr = 0.125});
      for (int step = 1; step < 3; ++step) {
        engine.backward(model->forward(batch_of(step, rank)).square().mean());
        engine.step();
      }
      auto expected = plain->parameters();
      for (const auto& parameter : plain_layer->parameters()) expected.push_back(parameter);
      expect_equal(model->parameters(), expected);
    });
  }
}

// Catches a norm that is added in 16 bit, with parameters that torch's kernels refuse together with its statistics.
TEST(Values, AddedNormsStayInFp32) {
  on_two_ranks([](int rank, const Options& options) {
    auto model = make_model();
    const auto config = Config::from_json(adam_config(2)).with(R"({"bf16": {"enabled": true}})");
    auto engine = initialize(*model, config, options);
    torch::nn::BatchNorm1d norm(3);
    torch::nn::Linear layer(3, 2);
    model->push_back(norm);
    model->push_back(layer);
    auto added = norm->parameters();
    for (const auto& parameter : layer->parameters()) added.push_back(parameter);
    engine.add_parameters({.parameters = added});
    EXPECT_EQ(norm->weight.scalar_type(), at::kFloat);
    EXPECT_EQ(layer->weight.scalar_type(), at::kBFloat16);
    engine.backward(model->forward(batch_of(0, rank).to(at::kBFloat16)).square().mean());
    engine.step();
    EXPECT_TRUE(engine.was_step_applied());
  });
}

// Catches a device that this build does not support, which would end with an assertion of torch.
TEST(Initialize, ADeviceThatIsNotThereIsRefused) {
  auto model = make_model();
  Options options;
  options.device = at::Device(at::kXLA);
  try {
    initialize(*model, Config::from_json(adam_config(0)), options);
    ADD_FAILURE() << "this device does not exist";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("Options::device is xla"), std::string::npos) << error.what();
  }
  EXPECT_STREQ(version(), "0.2.0");
}

}  // namespace
}  // namespace zeropage
