// Tests of optimizer objects of libtorch and of programs, against plain libtorch in one process.
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/schedulers/step_lr.h>
#include <torch/optim/sgd.h>

#include <fmt/format.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>

#include "zeropage/base/error.h"
#include "zeropage/cpp/test_training.h"

namespace zeropage {
namespace {

using torch::optim::Optimizer;

Config config_of(int stage, const char* more = "{}") {
  return Config::from_json(R"({"train_micro_batch_size_per_gpu": 2, "zero_allow_untested_optimizer": true,
    "zero_optimization": {"stage": )" +
                           std::to_string(stage) + R"(, "stage3_param_persistence_threshold": 8}})")
      .with(more);
}

/// A program's own class: it moves against the sign of a running mean, and keeps its state outside of torch's.
class SignDescent : public Optimizer {
 public:
  explicit SignDescent(std::vector<at::Tensor> parameters)
      : Optimizer(std::move(parameters), std::make_unique<torch::optim::SGDOptions>(0.01)) {}

  at::Tensor step(LossClosure) override {
    ++calls;
    for (auto& parameter : param_groups()[0].params()) {
      if (!parameter.grad().defined()) continue;
      auto& mean = means[parameter.unsafeGetTensorImpl()];
      mean = mean.defined() ? mean * 0.5 + parameter.grad() * 0.5 : parameter.grad().clone();
      parameter.set_data(parameter - mean.sign() * param_groups()[0].options().get_lr());
    }
    return {};
  }

  int calls = 0;
  std::map<const void*, at::Tensor> means;
};

using Make = std::function<std::shared_ptr<Optimizer>(torch::nn::Sequential&)>;

std::shared_ptr<Optimizer> two_groups(torch::nn::Sequential& model) {
  using torch::optim::OptimizerParamGroup;
  auto all = model->parameters();
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(std::vector<at::Tensor>{all[0], all[1]});
  groups.emplace_back(std::vector<at::Tensor>{all[2], all[3]},
                      std::make_unique<torch::optim::SGDOptions>(torch::optim::SGDOptions(0.125).weight_decay(0.1)));
  return std::make_shared<torch::optim::SGD>(groups, torch::optim::SGDOptions(0.25).momentum(0.5));
}

const std::vector<std::pair<const char*, Make>>& optimizers() {
  using namespace torch::optim;
  static const std::vector<std::pair<const char*, Make>> all = {
      {"RMSprop",
       [](auto& model) {
         return std::make_shared<RMSprop>(model->parameters(), RMSpropOptions(0.01).momentum(0.5).centered(true));
       }},
      {"SGD", &two_groups},
      {"Adam",
       [](auto& model) { return std::make_shared<Adam>(model->parameters(), AdamOptions(0.01).amsgrad(true)); }},
      {"Adagrad",
       [](auto& model) {
         return std::make_shared<Adagrad>(model->parameters(), AdagradOptions(0.1).initial_accumulator_value(0.5));
       }},
      {"SignDescent", [](auto& model) { return std::make_shared<SignDescent>(model->parameters()); }}};
  return all;
}

std::vector<at::Tensor> expected_after(const Make& make, int steps) {
  auto model = make_model();
  auto optimizer = make(model);
  train_by_libtorch(model, *optimizer, 0, steps);
  return model->parameters();
}

// Catches an optimizer that does not run, runs on the wrong elements, or whose groups lose their learning rates.
TEST(Optimizer, ObjectsTrainAsInPlainLibtorch) {
  for (const auto& [name, make] : optimizers()) {
    for (const int stage : {0, 1, 2, 3}) {
      SCOPED_TRACE(fmt::format("{} at stage {}", name, stage));
      on_two_ranks([&, make = make](int rank, Options options) {
        auto model = make_model();
        options.optimizer = make(model);
        const auto rate = options.optimizer->param_groups()[0].options().get_lr();
        auto engine = initialize(*model, config_of(stage), options);
        EXPECT_EQ(engine.get_lr().front(), rate);
        train(engine, model, 0, 3, rank);
        expect_equal(model->parameters(), expected_after(make, 3));
        if (const auto* own = dynamic_cast<SignDescent*>(options.optimizer.get())) {
          EXPECT_EQ(own->calls, 3);
        }
      });
    }
  }
}

// Catches a memory table without the state of an object.
TEST(Optimizer, TheMemoryTableHasTheStateOfAnObject) {
  for (const int stage : {0, 2}) {
    on_two_ranks([stage](int rank, const Options& options) {
      auto model = make_model();
      Options with_object = options;
      with_object.optimizer =
          std::make_shared<torch::optim::Adam>(model->parameters(), torch::optim::AdamOptions(0.01));
      auto engine = initialize(*model, config_of(stage), with_object);
      const auto before = engine.memory_report();
      train(engine, model, 0, 1, rank);
      const auto after = engine.memory_report();
      std::int64_t kept = 0;
      std::int64_t numel = 0;
      for (int of = 0; of < 2; ++of) kept += after.ranks[of].optimizer - before.ranks[of].optimizer;
      for (const auto& parameter : model->parameters()) numel += parameter.numel();
      EXPECT_EQ(kept, 2 * 4 * numel * (stage == 0 ? 2 : 1)) << "two fp32 moments, on each rank or shared out";
    });
  }
}

// Catches state that is not restored, or that only the same stage can load.
TEST(Optimizer, StateGoesOnFromACheckpoint) {
  for (const auto& [name, make] : optimizers()) {
    if (std::string(name) == "SignDescent") continue;
    SCOPED_TRACE(name);
    const std::string folder = testing::TempDir() + "/optimizer_state_" + name;
    std::filesystem::remove_all(folder);
    on_two_ranks([&, make = make](int rank, Options options) {
      auto model = make_model();
      options.optimizer = make(model);
      auto engine = initialize(*model, config_of(3), options);
      train(engine, model, 0, 2, rank);
      engine.save_checkpoint(folder);

      auto other = make_model();
      options.optimizer = make(other);
      const auto rate = options.optimizer->param_groups()[0].options().get_lr();
      options.optimizer->param_groups()[0].options().set_lr(17.0);
      engine = initialize(*other, config_of(1), options);
      ASSERT_TRUE(engine.load_checkpoint(folder));
      EXPECT_EQ(engine.get_lr().front(), rate);
      train(engine, other, 2, 4, rank);
      expect_equal(other->parameters(), expected_after(make, 4));
    });
  }
}

// Catches a class that cannot save its state, with a checkpoint that does not record this.
TEST(Optimizer, AClassWithoutSaveIsRefusedByLoad) {
  const std::string folder = testing::TempDir() + "/optimizer_without_save";
  std::filesystem::remove_all(folder);
  on_two_ranks([&](int rank, Options options) {
    auto model = make_model();
    options.optimizer = std::make_shared<SignDescent>(model->parameters());
    auto engine = initialize(*model, config_of(2), options);
    train(engine, model, 0, 1, rank);
    engine.save_checkpoint(folder);
    EXPECT_THROW(engine.load_checkpoint(folder), CheckpointError);
    LoadOptions without;
    without.load_optimizer_states = false;
    EXPECT_TRUE(engine.load_checkpoint(folder, without));
  });
}

// Catches a scheduler on the user's object that has no effect.
TEST(Optimizer, SchedulersOfLibtorchDriveTheEngine) {
  auto plain = make_model();
  torch::optim::RMSprop optimizer(plain->parameters(), torch::optim::RMSpropOptions(0.02));
  torch::optim::StepLR schedule(optimizer, 1, 0.5);
  for (int step = 0; step < 3; ++step) {
    train_by_libtorch(plain, optimizer, step, step + 1);
    schedule.step();
  }
  on_two_ranks([&](int rank, Options options) {
    auto model = make_model();
    options.optimizer =
        std::make_shared<torch::optim::RMSprop>(model->parameters(), torch::optim::RMSpropOptions(0.02));
    auto engine = initialize(*model, config_of(3), options);
    torch::optim::StepLR schedule(*options.optimizer, 1, 0.5);
    for (int step = 0; step < 3; ++step) {
      train(engine, model, step, step + 1, rank);
      schedule.step();
    }
    EXPECT_DOUBLE_EQ(engine.get_lr().front(), optimizer.param_groups()[0].options().get_lr());
    expect_equal(model->parameters(), plain->parameters());
  });
}

// Catches an `optimizer.step()` of the program that does nothing, or updates a second time.
TEST(Optimizer, AStepThatWasLeftInTheLoopIsAnError) {
  on_two_ranks([](int rank, Options options) {
    auto model = make_model();
    options.optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.25);
    {
      auto engine = initialize(*model, config_of(2), options);
      options.optimizer->zero_grad();
      engine.backward(loss_of(model, batch_of(0, rank)));
      try {
        options.optimizer->step();
        ADD_FAILURE() << "optimizer.step() did nothing on rank " << rank;
      } catch (const c10::Error& error) {
        EXPECT_NE(std::string(error.what()).find("leave optimizer.step()"), std::string::npos) << error.what();
      }
      engine.step();
    }
    EXPECT_EQ(options.optimizer->param_groups()[0].params().size(), 4u) << "the program has its optimizer back";
    expect_equal(
        model->parameters(),
        expected_after([](auto& plain) { return std::make_shared<torch::optim::SGD>(plain->parameters(), 0.25); }, 1));
  });
}

int times_said(const std::string& log) {
  int times = 0;
  for (auto at = log.find("left in the loop"); at != std::string::npos; at = log.find("left in the loop", at + 1)) {
    ++times;
  }
  return times;
}

// Catches a second update in addition to the engine's, by an optimizer that the engine does not have; the engine's own
// optimizer must not be reported.
TEST(Optimizer, AnUpdateBesideTheEnginesIsSaid) {
  for (const bool adam : {false, true}) {
    for (const bool given : {false, true}) {
      for (const int stage : {0, 1, 2, 3}) {
        SCOPED_TRACE(
            fmt::format("{} in addition to {} at stage {}", adam ? "Adam" : "SGD", given ? "RMSprop" : "SGD", stage));
        std::vector<int> said;
        for (const int from : {0, 1, 2}) {  // in none of the steps, in the last, in both
          testing::internal::CaptureStderr();
          on_two_ranks([&](int rank, Options options) {
            auto model = make_model();
            if (given) options.optimizer = std::make_shared<torch::optim::RMSprop>(model->parameters(), 0.01);
            std::shared_ptr<Optimizer> other = std::make_shared<torch::optim::SGD>(model->parameters(), 0.25);
            if (adam) other = std::make_shared<torch::optim::Adam>(model->parameters(), 0.25);
            auto engine = initialize(
                *model, config_of(stage, given ? "{}" : R"({"optimizer": {"type": "SGD", "params": {"lr": 0.25}}})"),
                options);
            for (int step = 0; step < 2; ++step) {
              engine.backward(loss_of(model, batch_of(step, rank)));
              if (step + from >= 2) other->step();
              engine.step();
            }
          });
          said.push_back(times_said(testing::internal::GetCapturedStderr()));
        }
        EXPECT_EQ(said, (std::vector<int>{0, 1, 1})) << "once, and only where there is one";
      }
    }
  }
}

// Catches a loss that each rank evaluates by itself, so that the line searches differ; and writes of LBFGS between
// backwards that are reported as the program's.
TEST(Optimizer, LbfgsRunsAtStage0) {
  testing::internal::CaptureStderr();
  const auto options_of = [] { return torch::optim::LBFGSOptions(0.5).max_iter(4).line_search_fn("strong_wolfe"); };
  auto plain = make_model();
  torch::optim::LBFGS optimizer(plain->parameters(), options_of());
  for (int step = 0; step < 3; ++step) {
    optimizer.step([&] {
      optimizer.zero_grad();
      auto loss = whole_loss(plain, step);
      loss.backward();
      return loss;
    });
  }
  on_two_ranks([&](int rank, Options options) {
    auto model = make_model();
    options.optimizer = std::make_shared<torch::optim::LBFGS>(model->parameters(), options_of());
    EXPECT_THROW(initialize(*model, config_of(1), options), ConfigError);
    auto engine = initialize(*model, config_of(0), options);
    EXPECT_THROW(engine.step(), UsageError);
    for (int step = 0; step < 3; ++step) engine.step([&] { return loss_of(model, batch_of(step, rank)); });
    EXPECT_EQ(engine.global_steps(), 3);
    expect_equal(model->parameters(), plain->parameters());
  });
  EXPECT_EQ(times_said(testing::internal::GetCapturedStderr()), 0);
}

// Catches optimizers that would train nothing, or other parameters than those that they have.
TEST(Optimizer, WhatCannotRunIsRefused) {
  auto model = make_model();
  auto other = make_model();
  Options options;
  options.optimizer = std::make_shared<torch::optim::SGD>(other->parameters(), 0.25);
  EXPECT_THROW(initialize(*model, config_of(2), options), ConfigError) << "of another model";
  options.optimizer = std::make_shared<SignDescent>(model->parameters());
  EXPECT_THROW(initialize(*model, config_of(2, R"({"zero_allow_untested_optimizer": false})"), options), ConfigError);
  auto adam = std::make_shared<torch::optim::Adam>(model->parameters(), 0.01);
  train_by_libtorch(model, *adam, 0, 1);
  options.optimizer = adam;
  EXPECT_THROW(initialize(*model, config_of(2), options), ConfigError) << "has taken steps";
}

}  // namespace
}  // namespace zeropage
