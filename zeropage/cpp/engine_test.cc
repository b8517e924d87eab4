#include <algorithm>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/utils/clip_grad.h>

#include "zeropage/cpp/test_ranks.h"

namespace zeropage {
namespace {

constexpr const char* kEngineConfig = R"({
  "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2,
  "optimizer": {"type": "AdamW", "params": {"lr": 0.5}},
  "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}})";

struct Scale : torch::nn::Module {
  explicit Scale(double value)
      : weight(register_parameter("weight", at::full({4}, value))),
        alias(register_parameter("alias", weight)),
        offset(register_buffer("offset", at::full({4}, value))) {}
  at::Tensor forward(const at::Tensor& x) { return (x * weight + offset).sum(); }
  at::Tensor weight, alias, offset;
};

// Catches ranks that start from different values, and a buffer that is not broadcast.
TEST(Initialize, GivesEveryRankTheValuesOfRank0) {
  on_two_ranks([](int rank, const Options& options) {
    Scale model(1.0 + rank);
    auto engine = initialize(model, Config::from_json(kEngineConfig), options);
    EXPECT_EQ(model.offset.sum().item<double>(), 4.0);
    EXPECT_EQ(model.weight.sum().item<double>(), 4.0);
    EXPECT_EQ(engine.global_rank(), rank);
    EXPECT_EQ(engine.get_batch_info(), std::make_tuple(8, 2, 2));
  });
}

struct Normed : torch::nn::Module {
  Normed()
      : norm(register_module("norm", torch::nn::BatchNorm1d(4))),
        weight(register_parameter("weight", at::ones({4}))),
        table(register_buffer("table", at::ones({4}))) {}
  at::Tensor forward(const at::Tensor& x) { return (norm(x * weight) * table).to(at::kFloat).square().mean(); }
  torch::nn::BatchNorm1d norm;
  at::Tensor weight, table;
};

// Catches an fp32 buffer that is rounded, and a batch norm whose parameters and statistics have types that do not
// match.
TEST(Initialize, TypesOfBuffersAndOfBatchNorms) {
  on_two_ranks([](int rank, const Options& options) {
    Normed model;
    auto engine = initialize(model, Config::from_json(kEngineConfig).with(R"({"bf16": {"enabled": true}})"), options);
    EXPECT_EQ(model.weight.scalar_type(), at::kBFloat16);
    EXPECT_EQ(model.table.scalar_type(), at::kFloat);
    EXPECT_EQ(model.norm->weight.scalar_type(), at::kFloat);
    engine.backward(model.forward(at::randn({8, 4}).to(at::kBFloat16)));
    Normed cast;
    auto other = initialize(cast, Config::from_json(kEngineConfig).with(R"({"bf16": {"enabled": true},
        "data_types": {"buffer_dtype": "bf16", "keep_in_fp32_modules": []}})"),
                            options);
    EXPECT_EQ(cast.table.scalar_type(), at::kBFloat16);
    EXPECT_EQ(cast.norm->weight.scalar_type(), at::kBFloat16);
    other.backward(cast.forward(at::randn({8, 4}).to(at::kBFloat16)));
  });
}

// Catches ranks that train with different hyperparameters.
TEST(Initialize, RanksWithDifferentHyperparametersAreRefused) {
  on_two_ranks([](int rank, const Options& options) {
    Scale model(1.0);
    Options own = options;
    own.parameter_groups.emplace_back().parameters = model.parameters();
    own.parameter_groups.back().lr = 0.5 + rank;
    try {
      initialize(model, Config::from_json(kEngineConfig), own);
      ADD_FAILURE() << "rank " << rank << " trains with a rate of its own";
    } catch (const PeerError& error) {
      EXPECT_NE(std::string(error.what()).find("\"lr\":1.5"), std::string::npos) << error.what();
    }
  });
}

// Catches "auto" that C++ programs would have to fill in themselves, or that stays in the configuration as text.
TEST(Initialize, ChoosesWhatIsAutomatic) {
  on_two_ranks([](int rank, const Options& options) {
    Scale model(1.0);
    auto engine = initialize(model, Config::from_json(R"({
      "train_batch_size": 8, "train_micro_batch_size_per_gpu": "auto", "optimizer": {"type": "AdamW"},
      "zero_optimization": {"stage": "auto", "reduce_bucket_size": "auto", "offload_optimizer": {"device": "auto"}}})"),
                             options);
    EXPECT_EQ(engine.zero_optimization_stage(), 1) << "four parameters fit anywhere";
    EXPECT_EQ(engine.train_micro_batch_size_per_gpu(), 4);
    EXPECT_NE(engine.config().find(R"("reduce_bucket_size": 65536)"), std::string::npos) << engine.config();
  });
}

// Catches micro steps that are not counted, and a learning rate that has no effect.
TEST(Engine, UpdatesAtTheBoundaryWithTheRateThatWasSet) {
  on_two_ranks([](int rank, const Options& options) {
    Scale model(1.0);
    auto engine = initialize(model, Config::from_json(kEngineConfig), options);
    EXPECT_EQ(engine.get_lr(), std::vector<double>{0.5});
    engine.set_lr(0.25);
    EXPECT_THROW(engine.set_lr(std::vector<double>{1.0, 2.0}), UsageError);
    for (int micro = 0; micro < 2; ++micro) {
      EXPECT_EQ(engine.is_gradient_accumulation_boundary(), micro == 1);
      engine.backward(model.forward(at::ones({4})));
      engine.step();
    }
    EXPECT_EQ(engine.global_steps(), 1);
    EXPECT_TRUE(engine.was_step_applied());
    EXPECT_DOUBLE_EQ(*engine.get_global_grad_norm(),
                     2.0);  // four gradients of 1, the mean over ranks and micro batches
    EXPECT_DOUBLE_EQ(engine.mean_loss(), 8.0);
    // Adam's first step is the learning rate, for any gradient; AdamW's weight decay adds a little.
    EXPECT_NEAR(model.weight.mean().item<double>(), 0.75, 0.01);
    EXPECT_EQ(engine.memory_report().ranks.size(), 2u);
    EXPECT_NE(engine.memory_report().table().find("stage 3"), std::string::npos);
  });
}

// Catches gradients that the program's code cannot read, or whose changes the step does not use.
TEST(Engine, GradientsAreReadAndChangedByLibtorch) {
  on_two_ranks([](int rank, const Options& options) {
    Scale model(1.0);
    auto engine = initialize(model, Config::from_json(R"({
      "train_micro_batch_size_per_gpu": 2, "optimizer": {"type": "SGD", "params": {"lr": 1.0}},
      "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}})"),
                             options);
    engine.backward(model.forward(at::full({4}, 2.0 + 2.0 * rank)));
    EXPECT_TRUE(model.weight.grad().equal(at::full({4}, 3.0))) << model.weight.grad();
    EXPECT_DOUBLE_EQ(torch::nn::utils::clip_grad_norm_({model.weight}, 3.0), 6.0);
    engine.step();
    EXPECT_NEAR(model.weight.mean().item<double>(), 1.0 - 1.5, 1e-5);
    EXPECT_FALSE(model.weight.grad().defined());
  });
}

// Catches an edit by one rank that the other ranks do not get.
TEST(Engine, GatheredHandsOnTheEditsOfOneRank) {
  on_two_ranks([](int rank, const Options& options) {
    Scale model(1.0);
    auto engine = initialize(model, Config::from_json(kEngineConfig), options);
    {
      const auto scope = engine.gathered({model.weight}, /*modifier_rank=*/1);
      if (rank == 1) std::fill_n(static_cast<float*>(model.weight.data_ptr()), 4, 7.0f);
    }
    EXPECT_EQ(model.weight.sum().item<double>(), 28.0);
    EXPECT_THROW(engine.gathered({at::ones({1})}), UsageError);
  });
}

// Catches a group whose hyperparameters are lost, and a parameter that two groups update.
TEST(Initialize, TakesParameterGroups) {
  Scale model(1.0);
  Options options;
  options.parameter_groups.push_back({.parameters = {model.weight}, .lr = 0.125, .betas = std::pair(0.5, 0.75)});
  auto engine = initialize(model, Config::from_json(kEngineConfig), options);
  EXPECT_EQ(engine.get_lr(), std::vector<double>{0.125});
  EXPECT_EQ(engine.get_mom().front(), std::pair(0.5, 0.75));
  Scale other(1.0);
  options.parameter_groups = {{{other.weight}}, {{other.weight}}};
  EXPECT_THROW(initialize(other, Config::from_json(kEngineConfig), options), ConfigError);
}

// Catches a hyperparameter that has no effect, or that is dropped without an error.
TEST(Initialize, TakesWhatEachOptimizerHas) {
  const auto sgd = Config::from_json(kEngineConfig).with(R"({"optimizer": {"type": "SGD", "params": {"lr": 0.5}}})");
  Scale model(1.0);
  Options options;
  options.parameter_groups.push_back({.parameters = {model.weight}, .momentum = 0.5});
  auto engine = initialize(model, sgd, options);
  EXPECT_EQ(engine.optimizer_name(), "sgd");
  EXPECT_EQ(engine.scheduler_name(), std::nullopt);
  EXPECT_EQ(engine.get_mom().front(), std::pair(0.5, 0.0));
  for (int micro = 0; micro < 4; ++micro) {
    engine.backward(model.forward(at::ones({4})));
    engine.step();
  }
  // Gradients of 1: a first step of 0.5 * 1, a second of 0.5 * (1 + 0.5).
  EXPECT_DOUBLE_EQ(model.weight.mean().item<double>(), 1.0 - 0.5 - 0.75);
  Scale other(1.0);
  options.parameter_groups = {{.parameters = {other.weight}, .nesterov = true}};
  try {
    initialize(other, Config::from_json(kEngineConfig), options);
    FAIL() << "AdamW took nesterov";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("nesterov"), std::string::npos) << error.what();
  }
}

// Catches an out-of-memory error without the engine's bytes by kind.
TEST(Engine, ALackOfMemoryNamesWhatTheEngineHolds) {
  Scale model(1.0);
  auto engine = initialize(model, Config::from_json(kEngineConfig));
  const at::Tensor out = model.forward(at::ones({4}));
  out.register_hook([](const at::Tensor& gradient) -> at::Tensor {
    TORCH_CHECK_WITH(OutOfMemoryError, false, "no memory is left");
    return gradient;
  });
  try {
    engine.backward(out);
    FAIL() << "nothing was thrown";
  } catch (const c10::OutOfMemoryError& error) {
    EXPECT_NE(std::string(error.what()).find("This engine holds: parameters "), std::string::npos) << error.what();
  }
}

// Catches a changed key that is not checked, or that changes others.
TEST(Config, CanBeChangedAndIsChecked) {
  const auto config = Config::from_json(kEngineConfig).with(R"({"zero_optimization": {"stage": 1}})");
  Scale model(1.0);
  const auto engine = initialize(model, config);
  EXPECT_EQ(engine.zero_optimization_stage(), 1);
  EXPECT_NE(engine.config().find("0.5"), std::string::npos);
  EXPECT_THROW(config.with(R"({"zero_optimization": {"stage": 7}})"), ConfigError);
  EXPECT_THROW(config.with("[]"), ConfigError);
  const auto monitored = config.with(R"({"csv_monitor": {"enabled": true}})");
  EXPECT_THROW(initialize(model, monitored), ConfigError) << "C++ programs write no metrics, and must not pretend to";
  EXPECT_THROW(Config::from_file("/nowhere.json"), IoError);
}

}  // namespace
}  // namespace zeropage
