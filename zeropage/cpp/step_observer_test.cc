// Tests of the monitoring of C++ engines, and of states that are offloaded and reloaded.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/module.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "zeropage/cpp/test_ranks.h"

namespace zeropage {
namespace {

using nlohmann::json;

struct Line : torch::nn::Module {
  Line() : weight(register_parameter("weight", at::ones({8, 8}))) {}
  at::Tensor forward() { return at::ones({4, 8}, weight.scalar_type()).matmul(weight).square().mean(); }
  at::Tensor weight;
};

Config config_with(const json& keys) {
  json config = {{"train_micro_batch_size_per_gpu", 4},
                 {"optimizer", {{"type", "AdamW"}, {"params", {{"lr", 0.5}}}}},
                 {"zero_optimization", {{"stage", 3}, {"stage3_param_persistence_threshold", 0}}}};
  config.update(keys);
  return Config::from_json(config.dump());
}

void train_steps(Engine& engine, Line& model, int steps) {
  for (int i = 0; i < steps; ++i) {
    engine.backward(model.forward());
    engine.step();
  }
}

/// A folder that is removed after the test.
struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("zp-watch-" + std::to_string(::getpid()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
};

std::string text_of(const std::filesystem::path& path) {
  std::ostringstream out;
  out << std::ifstream(path).rdbuf();
  return out.str();
}

// Catches figures that a page or a spreadsheet cannot read, or that more than one rank writes.
TEST(StepObserver, WritesWhatPythonWrites) {
  const Folder folder;
  const auto config =
      config_with({{"wall_clock_breakdown", true},
                   {"steps_per_print", 2},
                   {"csv_monitor", {{"enabled", true}, {"output_path", folder.path}, {"job_name", "job"}}},
                   {"zeropage", {{"metrics_file", folder.path / "new" / "run.jsonl"}}}});
  on_two_ranks([&](int rank, const Options& options) {
    Line model;
    auto engine = initialize(model, config, options);
    train_steps(engine, model, 3);
    EXPECT_EQ(engine.monitor().enabled(), rank == 0);
    engine.monitor().write_events({{"Valid/my loss", 0.5, engine.global_samples()}});
  });
  EXPECT_EQ(text_of(folder.path / "job" / "Train_Samples_lr.csv"), "step,lr\n8,0.5\n16,0.5\n24,0.5\n");
  EXPECT_EQ(text_of(folder.path / "job" / "Valid_my_loss.csv"), "step,my loss\n24,0.5\n");
  EXPECT_TRUE(std::filesystem::exists(folder.path / "job" / "Train_Samples_elapsed_time_ms_backward.csv"));
  std::ifstream lines(folder.path / "new" / "run.jsonl");
  std::vector<json> records;
  for (std::string line; std::getline(lines, line);) records.push_back(json::parse(line));
  std::vector<std::string> kinds;
  for (const auto& record : records) kinds.push_back(record["record"]);
  EXPECT_EQ(kinds, (std::vector<std::string>{"run", "step", "pages", "step", "step", "pages"}));
  EXPECT_EQ(records[0]["world_size"], 2);
  EXPECT_EQ(records[0]["trainable_parameters"], 64);
  EXPECT_EQ(records[0]["formula_bytes"]["optimizer"], 2 * 4 * 64 / 2);
  const json& last = records[4];
  EXPECT_EQ(last["step"], 3);
  EXPECT_EQ(last["samples"], 24);
  EXPECT_GT(last["seconds"]["whole"], last["seconds"]["backward"]);
  EXPECT_GT(last["seconds"]["update"], 0.0);
  EXPECT_GT(last["bytes"]["optimizer"][0], 0);
  EXPECT_EQ(records[5]["pages"].size(), 1u);
}

// Catches a skipped step that looks like an applied one.
TEST(StepObserver, TellsOfSkippedSteps) {
  const Folder folder;
  const auto config =
      config_with({{"bf16", {{"enabled", true}}}, {"zeropage", {{"metrics_file", folder.path / "skipped.jsonl"}}}});
  on_two_ranks([&](int rank, const Options& options) {
    Line model;
    auto engine = initialize(model, config, options);
    for (const double factor : {1.0, rank == 1 ? std::numeric_limits<double>::infinity() : 1.0, 1.0}) {
      engine.backward(model.forward() * factor);
      engine.step();
    }
    EXPECT_EQ(engine.skipped_steps(), 1);
  });
  std::ifstream lines(folder.path / "skipped.jsonl");
  std::vector<json> told;
  for (std::string line; std::getline(lines, line);) {
    const auto record = json::parse(line);
    if (record["record"] == "step")
      told.push_back({record["applied"], record["skipped_steps"], record["overflow_parameter"]});
  }
  EXPECT_EQ(told, (std::vector<json>{{true, 0, nullptr}, {false, 1, "weight"}, {true, 1, nullptr}}));
}

// Catches collectives that are counted, but that the program cannot read.
TEST(StepObserver, SumsUpCollectives) {
  on_two_ranks([](int, const Options& options) {
    Line model;
    auto engine = initialize(model, config_with({{"comms_logger", {{"enabled", true}}}}), options);
    train_steps(engine, model, 1);
    EXPECT_NE(engine.comms_summary().find("reduce_scatter"), std::string::npos) << engine.comms_summary();
  });
  Line model;
  EXPECT_EQ(initialize(model, config_with(json::object())).comms_summary(), "");
}

// Catches states that are not reloaded, and a step that trains offloaded states.
TEST(Engine, StatesAreOffloadedAndReloaded) {
  on_two_ranks([](int rank, const Options& options) {
    Line model, other;
    auto engine = initialize(model, config_with(json::object()), options);
    auto uninterrupted = initialize(other, config_with(json::object()), options);
    train_steps(engine, model, 1);
    engine.offload_states({.parameters = false});
    const auto report = engine.memory_report();
    EXPECT_EQ(report.ranks[rank].optimizer, 0);
    EXPECT_GT(report.host[rank].optimizer, 0);
    EXPECT_THROW(engine.backward(model.forward()), UsageError);
    engine.reload_states();
    train_steps(engine, model, 1);
    train_steps(uninterrupted, other, 2);
    EXPECT_TRUE(at::equal(model.weight, other.weight));
  });
}

// Catches a requested precision that is not applied, without an error.
TEST(Engine, AutocastIsOfTheForward) {
  Line model;
  auto engine = initialize(model, config_with({{"torch_autocast", {{"enabled", true}}}}));
  EXPECT_EQ(engine.autocast_dtype(), at::kBFloat16);
  EXPECT_THROW(engine.backward(model.forward()), UsageError);
  {
    const auto scope = engine.autocast();
    EXPECT_EQ(at::ones({2, 2}).matmul(at::ones({2, 2})).scalar_type(), at::kBFloat16);
  }
  EXPECT_EQ(at::ones({2, 2}).matmul(at::ones({2, 2})).scalar_type(), at::kFloat);
  const auto loss = [&] {
    const auto scope = engine.autocast();
    return model.forward();
  }();
  engine.backward(loss);
  engine.step();
  EXPECT_EQ(model.weight.scalar_type(), at::kFloat);
}

}  // namespace
}  // namespace zeropage
