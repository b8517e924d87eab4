// Tests of checkpoints that the engine's own update saves and an optimizer object loads, and the reverse. The Python
// package saves the same tensors: tests/test_cpp_checkpoints.py.
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <fmt/format.h>

#include <filesystem>
#include <functional>
#include <memory>

#include "zeropage/base/error.h"
#include "zeropage/cpp/test_training.h"

namespace zeropage {
namespace {

using torch::optim::Optimizer;

/// An optimizer as an object of libtorch, and as the section of a configuration.
struct Pair {
  const char* name;
  std::function<std::shared_ptr<Optimizer>(torch::nn::Sequential&)> make;
  const char* section;
};

const std::vector<Pair>& pairs() {
  using namespace torch::optim;
  static const std::vector<Pair> all = {
      {"Adam",
       [](auto& model) {
         return std::make_shared<Adam>(model->parameters(), AdamOptions(0.01).weight_decay(0.1).betas({0.8, 0.9}));
       },
       R"({"type": "Adam", "params": {"lr": 0.01, "weight_decay": 0.1, "betas": [0.8, 0.9], "adam_w_mode": false}})"},
      {"AdamW", [](auto& model) { return std::make_shared<AdamW>(model->parameters(), AdamWOptions(0.01)); },
       R"({"type": "AdamW", "params": {"lr": 0.01, "weight_decay": 0.01}})"},
      {"SGD",
       [](auto& model) {
         return std::make_shared<SGD>(model->parameters(), SGDOptions(0.25).momentum(0.5).dampening(0.25));
       },
       R"({"type": "SGD", "params": {"lr": 0.25, "momentum": 0.5, "dampening": 0.25}})"},
      {"Adagrad",
       [](auto& model) {
         return std::make_shared<Adagrad>(model->parameters(), AdagradOptions(0.1).initial_accumulator_value(0.5));
       },
       R"({"type": "Adagrad", "params": {"lr": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-10}})"}};
  return all;
}

/// An engine with the object, or with the section.
Engine engine_of(torch::nn::Sequential& model, const Pair& pair, bool object, int stage, Options options) {
  auto config = Config::from_json(fmt::format(R"({{"train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {{"stage": {}, "stage3_param_persistence_threshold": 8}}}})",
                                              stage));
  if (!object) return initialize(*model, config.with(fmt::format(R"({{"optimizer": {}}})", pair.section)), options);
  options.optimizer = pair.make(model);
  return initialize(*model, config, options);
}

std::string new_folder(const std::string& name) {
  const std::string folder = testing::TempDir() + "/" + name;
  std::filesystem::remove_all(folder);
  return folder;
}

// Catches a resumed run whose moments or step counts are zero, without a message.
TEST(OptimizerCheckpoint, ObjectsAndTheEngineGoOnFromEachOther) {
  for (const auto& pair : pairs()) {
    auto plain = make_model();
    auto optimizer = pair.make(plain);
    train_by_libtorch(plain, *optimizer, 0, 5);
    for (const bool object_saves : {false, true}) {
      for (const int stage : {0, 1, 2, 3}) {
        SCOPED_TRACE(fmt::format("{}, saved by {}, stage {}", pair.name, object_saves ? "object" : "engine", stage));
        const auto folder = new_folder("objects_and_engine");
        on_two_ranks([&](int rank, const Options& options) {
          auto model = make_model();
          auto engine = engine_of(model, pair, object_saves, stage, options);
          train(engine, model, 0, 3, rank);
          engine.save_checkpoint(folder);
          auto other = make_model();
          engine = engine_of(other, pair, !object_saves, 3 - stage, options);
          ASSERT_TRUE(engine.load_checkpoint(folder));
          train(engine, other, 3, 5, rank);
          expect_equal(other->parameters(), plain->parameters());
        });
      }
    }
  }
}

/// The loss of the first layer only, so the second one gets no gradient.
at::Tensor first_layer_loss(torch::nn::Sequential& model, const at::Tensor& batch) {
  return model[0]->as<torch::nn::LinearImpl>()->forward(batch).square().mean();
}

// Catches a load that refuses parameters without a gradient, for which objects have no state, or that keeps their
// earlier state.
TEST(OptimizerCheckpoint, ParametersWithoutStateBeginAnew) {
  for (const auto& pair : pairs()) {
    auto plain = make_model();
    auto optimizer = pair.make(plain);
    for (int step = 0; step < 3; ++step) {
      optimizer->zero_grad();
      const auto batch = at::cat({batch_of(step, 0), batch_of(step, 1)});
      (step < 2 ? first_layer_loss(plain, batch) : loss_of(plain, batch)).backward();
      optimizer->step();
    }
    for (const bool object_saves : {false, true}) {
      SCOPED_TRACE(fmt::format("{}, saved by {}", pair.name, object_saves ? "object" : "engine"));
      const auto folder = new_folder("without_state");
      on_two_ranks([&](int rank, const Options& options) {
        auto model = make_model();
        auto engine = engine_of(model, pair, object_saves, 2, options);
        for (int step = 0; step < 2; ++step) {
          engine.backward(first_layer_loss(model, batch_of(step, rank)));
          engine.step();
        }
        engine.save_checkpoint(folder);
        auto other = make_model();
        engine = engine_of(other, pair, !object_saves, 3, options);
        train(engine, other, 7, 9, rank);  // the load must discard this state
        ASSERT_TRUE(engine.load_checkpoint(folder));
        train(engine, other, 2, 3, rank);
        expect_equal(other->parameters(), plain->parameters());
      });
    }
  }
}

Engine adam_of(torch::nn::Sequential& model, const char* section) {
  return engine_of(model, {"", {}, section}, false, 2, {});
}

Engine object_of(torch::nn::Sequential& model, torch::optim::AdamOptions adam) {
  const auto make = [&](auto& of) { return std::make_shared<torch::optim::Adam>(of->parameters(), adam); };
  return engine_of(model, {"", make, ""}, true, 2, {});
}

void expect_refused(Engine& engine, const std::string& folder, const char* because) {
  try {
    engine.load_checkpoint(folder);
    ADD_FAILURE() << "expected: " << because;
  } catch (const CheckpointError& error) {
    EXPECT_NE(std::string(error.what()).find(because), std::string::npos) << error.what();
  }
  LoadOptions without;
  without.load_optimizer_states = false;
  EXPECT_TRUE(engine.load_checkpoint(folder, without));
}

// Catches a hyperparameter of the checkpoint that the current optimizer does not have, and that the run would ignore.
TEST(OptimizerCheckpoint, HyperparametersThatCannotBeTakenOverAreRefused) {
  const auto folder = new_folder("other_hyperparameters");
  const auto save = [&](torch::nn::Sequential& model, Engine engine) {
    train(engine, model, 0, 1, 0);
    engine.save_checkpoint(new_folder("other_hyperparameters"));
  };
  using torch::optim::AdamOptions;
  auto decoupled = make_model(), unbiased = make_model(), amsgrad = make_model(), model = make_model();
  auto object = object_of(model, AdamOptions(0.01));
  save(decoupled, adam_of(decoupled, R"({"type": "Adam", "params": {"weight_decay": 0.1}})"));
  expect_refused(object, folder, "decoupled_weight_decay=true");
  const char* section = R"({"type": "Adam", "params": {"adam_w_mode": false, "bias_correction": false}})";
  save(unbiased, adam_of(unbiased, section));
  expect_refused(object, folder, "bias_correction=false");
  save(amsgrad, object_of(amsgrad, AdamOptions(0.01).amsgrad(true)));
  auto engine = adam_of(unbiased, R"({"type": "Adam"})");
  expect_refused(engine, folder, "amsgrad=true");
}

// Catches an Adam whose weight decay becomes AdamW's when the engine resumes.
TEST(OptimizerCheckpoint, TheKindOfWeightDecayGoesOn) {
  const auto folder = new_folder("weight_decay");
  auto plain = make_model();
  torch::optim::Adam optimizer(plain->parameters(), torch::optim::AdamOptions(0.01).weight_decay(0.5));
  train_by_libtorch(plain, optimizer, 0, 3);
  on_two_ranks([&](int rank, Options options) {
    auto model = make_model();
    options.optimizer =
        std::make_shared<torch::optim::Adam>(model->parameters(), torch::optim::AdamOptions(0.01).weight_decay(0.5));
    const auto config = Config::from_json(R"({"train_micro_batch_size_per_gpu": 2})");
    auto engine = initialize(*model, config, options);
    train(engine, model, 0, 2, rank);
    engine.save_checkpoint(folder);
    auto other = make_model();
    options.optimizer = nullptr;
    engine = initialize(*other, config.with(R"({"optimizer": {"type": "Adam"}})"), options);
    engine.load_checkpoint(folder);
    train(engine, other, 2, 3, rank);
    expect_equal(other->parameters(), plain->parameters());
  });
}

}  // namespace
}  // namespace zeropage
