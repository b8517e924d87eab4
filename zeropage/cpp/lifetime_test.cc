// Tests of engines and modules that are destroyed in either order.
#include <torch/optim/sgd.h>

#include <atomic>
#include <cmath>
#include <exception>
#include <filesystem>
#include <memory>
#include <optional>
#include <thread>

#include "zeropage/base/error.h"
#include "zeropage/cpp/test_training.h"

namespace zeropage {
namespace {

std::string sgd_config(int stage) {
  return R"({"train_micro_batch_size_per_gpu": 2, "optimizer": {"type": "SGD", "params": {"lr": 0.25}},
    "zero_optimization": {"stage": )" +
         std::to_string(stage) + R"(, "stage3_param_persistence_threshold": 0}})";
}

torch::nn::Sequential trained_by_libtorch(int from, int to, torch::nn::Sequential model) {
  torch::optim::SGD optimizer(model->parameters(), 0.25);
  train_by_libtorch(model, optimizer, from, to);
  return model;
}

// Catches trained values that are lost with the engine, hooks and marks that stay on the parameters, and a module that
// a second engine refuses.
TEST(Lifetime, AModuleGoesOnWithoutItsEngine) {
  for (const int stage : {0, 1, 2, 3}) {
    on_two_ranks([stage](int rank, const Options& options) {
      auto model = make_model();
      {
        auto engine = initialize(*model, Config::from_json(sgd_config(stage)), options);
        train(engine, model, 0, 2, rank);
      }
      expect_equal(model->parameters(), trained_by_libtorch(0, 2, make_model())->parameters());
      loss_of(model, batch_of(2, 0)).backward();
      EXPECT_TRUE(model->parameters()[0].grad().defined());
      for (auto& parameter : model->parameters()) parameter.mutable_grad().reset();
      {
        auto engine = initialize(*model, Config::from_json(sgd_config(3 - stage)), options);
        train(engine, model, 2, 4, rank);
      }
      expect_equal(model->parameters(), trained_by_libtorch(0, 4, make_model())->parameters());
    });
  }
}

// Catches a release after which something is still sharded, or a parameter that torch's own code cannot read and train.
TEST(Lifetime, ReleaseLeavesWholeParameters) {
  for (const int stage : {0, 1, 2, 3}) {
    on_two_ranks([stage](int rank, const Options& options) {
      auto model = make_model();
      auto engine = initialize(*model, Config::from_json(sgd_config(stage)), options);
      train(engine, model, 0, 2, rank);
      engine.release();
      EXPECT_THROW(engine.step(), UsageError);
      if (rank != 0) return;  // the rest runs on one rank only
      const auto expected = trained_by_libtorch(0, 2, make_model());
      for (std::size_t i = 0; i < expected->parameters().size(); ++i) {
        const auto numel = model->parameters()[i].numel();
        const auto raw = at::from_blob(model->parameters()[i].data_ptr(), {numel}, at::kFloat);
        EXPECT_TRUE(at::allclose(raw, expected->parameters()[i].detach().view(-1), 1e-5, 1e-6));
      }
      expect_equal(trained_by_libtorch(2, 4, model)->parameters(), trained_by_libtorch(2, 4, expected)->parameters());
    });
  }
}

// Catches an engine that uses a destroyed module.
TEST(Lifetime, AnEngineGoesOnWithoutTheModule) {
  const std::string folder = testing::TempDir() + "/module_ended_first";
  std::filesystem::remove_all(folder);
  on_two_ranks([&](int rank, const Options& options) {
    std::optional<torch::nn::Sequential> model = make_model();
    std::optional<Engine> engine;
    EXPECT_FALSE(engine.has_value());
    engine = initialize(**model, Config::from_json(sgd_config(3)), options);
    train(*engine, *model, 0, 2, rank);
    model.reset();
    engine->save_checkpoint(folder);
    auto other = make_model();
    engine = initialize(*other, Config::from_json(sgd_config(2)), options);
    engine->load_checkpoint(folder);
    expect_equal(other->parameters(), trained_by_libtorch(0, 2, make_model())->parameters());

    struct OnStack : torch::nn::Module {
      at::Tensor weight = register_parameter("weight", at::ones({4}));
      at::Tensor table = register_buffer("table", at::ones({4}));
    };
    auto on_stack = std::make_unique<OnStack>();
    std::unique_ptr<torch::nn::Module> unshared = std::move(on_stack);
    engine = initialize(*unshared, Config::from_json(sgd_config(3)), options);
    unshared.reset();
    engine->save_checkpoint(folder + "/stack");
    engine->save_16bit_model(folder + "/stack");
  });
}

// Catches a crash when a scope is destroyed after its engine.
TEST(Lifetime, AGatheredScopeMayEndAfterTheEngine) {
  auto model = make_model();
  std::optional<Engine> engine = initialize(*model, Config::from_json(sgd_config(3)));
  const auto scope = engine->gathered(model->parameters());
  engine.reset();
  EXPECT_EQ(model->parameters()[0].numel(), 35);
}

// Catches a change of types that the next step reverts without a message.
TEST(Lifetime, ParametersOfAnotherTypeAreRefused) {
  for (const int stage : {0, 3}) {
    on_two_ranks([stage](int rank, const Options& options) {
      auto model = make_model();
      auto engine = initialize(*model, Config::from_json(sgd_config(stage)), options);
      model->to(at::kDouble);
      try {
        engine.backward(loss_of(model, batch_of(0, rank).to(at::kDouble)));
        ADD_FAILURE() << "the module is in double, and the engine in float";
      } catch (const UsageError& error) {
        EXPECT_NE(std::string(error.what()).find("is Double on cpu now"), std::string::npos) << error.what();
      }
      model->to(at::kFloat);
      train(engine, model, 0, 2, rank);
      expect_equal(model->parameters(), trained_by_libtorch(0, 2, make_model())->parameters());
    });
  }
}

// Catches frames that an update frees while another thread's operators read them.
TEST(Lifetime, ASecondThreadEvaluatesDuringTraining) {
  on_two_ranks([](int rank, const Options& options) {
    torch::nn::Sequential model(torch::nn::Linear(64, 512), torch::nn::Linear(512, 512), torch::nn::Linear(512, 8));
    auto engine = initialize(*model, Config::from_json(sgd_config(3)), options);
    std::atomic<bool> ended{false};
    std::exception_ptr failure;
    std::thread evaluation([&] {
      c10::AutoGradMode no_grad(false);
      try {
        while (!ended) EXPECT_TRUE(std::isfinite(model->forward(at::ones({8, 64})).sum().item<double>()));
      } catch (...) {
        failure = std::current_exception();
      }
    });
    std::exception_ptr error;
    try {
      for (int step = 0; step < 40; ++step) {
        engine.backward(model->forward(at::full({4, 64}, 0.01 * (step + rank))).square().mean());
        engine.step();
      }
    } catch (...) {
      error = std::current_exception();
    }
    ended = true;
    evaluation.join();
    if (error) std::rethrow_exception(error);
    if (failure) std::rethrow_exception(failure);
    EXPECT_EQ(engine.global_steps(), 40);
  });
}

}  // namespace
}  // namespace zeropage
