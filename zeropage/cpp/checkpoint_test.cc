#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/module.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "zeropage/cpp/test_ranks.h"

namespace zeropage {
namespace {

constexpr const char* kCheckpointConfig = R"({
  "train_micro_batch_size_per_gpu": 2, "bf16": {"enabled": true},
  "optimizer": {"type": "AdamW", "params": {"lr": 0.5}},
  "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},
  "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}})";

struct ScaleCounted : torch::nn::Module {
  explicit ScaleCounted(double value, std::int64_t buffer_numel = 4)
      : weight(register_parameter("weight", at::full({5}, value))),
        alias(register_parameter("alias", weight)),
        seen(register_buffer("seen", at::zeros({buffer_numel}))) {}
  at::Tensor forward(const at::Tensor& x) {
    seen.add_(1.0);
    return (x * weight).sum();
  }
  at::Tensor weight, alias, seen;
};

/// A folder that its destructor removes.
class CheckpointFolder {
 public:
  CheckpointFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "zeropage_test_XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~CheckpointFolder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

void train(Engine& engine, ScaleCounted& model, int steps) {
  for (int step = 0; step < steps; ++step) {
    engine.backward(model.forward(at::full({5}, 1.0 + step, at::kBFloat16)));
    engine.step();
  }
}

// Catches state that is not saved or not restored: weights, moments, schedule, buffers, client state.
TEST(Checkpoint, TrainingGoesOnAsIfItHadNotStopped) {
  const CheckpointFolder folder;
  on_two_ranks([&](int rank, const Options& options) {
    ScaleCounted model(1.0);
    auto engine = initialize(model, Config::from_json(kCheckpointConfig), options);
    EXPECT_EQ(engine.load_checkpoint(folder.path()), std::nullopt);
    train(engine, model, 3);
    SaveOptions save;
    save.client_state = {R"({"epoch": 7, "names": ["a", null]})", {{"marks", at::arange(3) + rank}}};
    EXPECT_EQ(engine.save_checkpoint(folder.path(), save), folder.path() + "/global_step3");
    train(engine, model, 2);

    ScaleCounted other(9.0);
    auto resumed = initialize(other, Config::from_json(kCheckpointConfig), options);
    const auto loaded = resumed.load_checkpoint(folder.path());
    ASSERT_TRUE(loaded.has_value());
    EXPECT_EQ(loaded->path, folder.path() + "/global_step3");
    EXPECT_EQ(loaded->client_state.json, R"({"epoch":7,"names":["a",null]})");
    EXPECT_TRUE(at::equal(loaded->client_state.tensors.at("marks"), at::arange(3)));
    EXPECT_EQ(resumed.global_steps(), 3);
    train(resumed, other, 2);
    EXPECT_TRUE(at::equal(other.weight.to(at::kFloat), model.weight.to(at::kFloat)));
    EXPECT_TRUE(at::equal(other.seen, model.seen));
    EXPECT_EQ(resumed.get_lr(), engine.get_lr());
  });
}

// Catches a different model that is found only after something was changed, or not on every rank.
TEST(Checkpoint, WhatDoesNotFitIsRefusedAndChangesNothing) {
  const CheckpointFolder folder;
  on_two_ranks([&](int, const Options& options) {
    ScaleCounted model(1.0);
    initialize(model, Config::from_json(kCheckpointConfig), options).save_checkpoint(folder.path());
    ScaleCounted other(9.0, /*buffer_numel=*/3);
    auto engine = initialize(other, Config::from_json(kCheckpointConfig), options);
    try {
      engine.load_checkpoint(folder.path());
      ADD_FAILURE() << "a buffer of another shape was loaded";
    } catch (const CheckpointError& error) {
      EXPECT_NE(std::string(error.what()).find("buffer 'seen' is [3] in the model, [4]"), std::string::npos)
          << error.what();
    }
    EXPECT_EQ(other.weight.to(at::kFloat).sum().item<double>(), 45.0);
    LoadOptions by_tag;
    by_tag.tag = "nowhere";
    EXPECT_THROW(engine.load_checkpoint(folder.path(), by_tag), CheckpointError);
  });
}

// Catches moments of one optimizer that another one loads, because both have a state of the same name.
TEST(Checkpoint, StateOfAnotherOptimizerIsRefused) {
  const CheckpointFolder folder;
  on_two_ranks([&](int, const Options& options) {
    ScaleCounted model(1.0);
    auto engine = initialize(model, Config::from_json(kCheckpointConfig), options);
    train(engine, model, 1);
    engine.save_checkpoint(folder.path());
    ScaleCounted other(9.0);
    auto lion = initialize(
        other, Config::from_json(kCheckpointConfig).with(R"({"optimizer": {"type": "Lion", "params": {"lr": 0.5}}})"),
        options);
    try {
      lion.load_checkpoint(folder.path());
      ADD_FAILURE() << "Lion took AdamW's moments";
    } catch (const CheckpointError& error) {
      EXPECT_NE(std::string(error.what()).find("the optimizer is lion, but the checkpoint's optimizer is adamw"),
                std::string::npos)
          << error.what();
    }
    LoadOptions without;
    without.load_optimizer_states = false;
    EXPECT_TRUE(lion.load_checkpoint(folder.path(), without).has_value());
  });
}

// Catches a background save that nothing waits for, or that uses the communicator of the training and hangs.
TEST(Checkpoint, SavesInTheBackground) {
  const CheckpointFolder folder;
  auto saves = comm::make_thread_communicators(2, std::chrono::seconds(20));
  on_two_ranks([&](int rank, Options options) {
    options.saves = std::move(saves[rank]);
    ScaleCounted model(1.0);
    auto engine =
        initialize(model, Config::from_json(kCheckpointConfig).with(R"({"zeropage": {"async_save": true}})"), options);
    train(engine, model, 1);
    engine.save_checkpoint(folder.path());
    train(engine, model, 2);
    engine.wait_for_checkpoint();
    EXPECT_TRUE(std::filesystem::exists(folder.path() + "/global_step1/manifest.json"));
    EXPECT_EQ(engine.load_checkpoint(folder.path())->path, folder.path() + "/global_step1");
  });
}

// Catches a tied parameter that is written twice, and missing parts of other ranks.
TEST(Checkpoint, WritesTheModelForOthers) {
  const CheckpointFolder folder;
  on_two_ranks([&](int, const Options& options) {
    ScaleCounted model(1.0);
    auto engine = initialize(model, Config::from_json(kCheckpointConfig), options);
    engine.save_16bit_model(folder.path());
    EXPECT_THROW(engine.save_16bit_model(folder.path(), "model.bin"), UsageError);
  });
  std::ifstream file(folder.path() + "/model.safetensors", std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  for (const char* part : {"\"weight\":{", "\"dtype\":\"BF16\",\"shape\":[5]", "\"seen\":{"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text.substr(0, 500);
  }
  EXPECT_EQ(text.find("alias"), std::string::npos);
}

TEST(Checkpoint, ClientStateThatIsNoObjectIsRefused) {
  ScaleCounted model(1.0);
  auto engine = initialize(model, Config::from_json(kCheckpointConfig));
  SaveOptions save;
  save.client_state.json = "[1]";
  EXPECT_THROW(engine.save_checkpoint("/tmp", save), UsageError);
}

}  // namespace
}  // namespace zeropage
