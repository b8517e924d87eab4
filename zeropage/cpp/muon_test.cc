// Tests of optimizers that get whole parameters: Muon from the configuration, and a program's own class.
#include "zeropage/cpp/muon.h"

#include <fmt/format.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/optim/sgd.h>

#include <unistd.h>

#include <filesystem>
#include <map>

#include "zeropage/base/error.h"
#include "zeropage/cpp/test_training.h"

namespace zeropage {
namespace {

using torch::optim::Optimizer;

Config muon_config(int stage, const std::string& more) {
  return Config::from_json(R"({"train_micro_batch_size_per_gpu": 2, "gradient_clipping": 0,
    "zero_optimization": {"stage": )" +
                           std::to_string(stage) + R"(, "stage3_param_persistence_threshold": 8}})")
      .with(more.c_str());
}

constexpr const char* kMuon = R"({"optimizer": {"type": "Muon", "params":
  {"lr": 0.02, "adam_lr": 0.01, "weight_decay": 0.1, "ns_method": "standard", "ns_dtype": "fp32", "eps": 1e-4}}})";

/// Matrices and the rest of make_model(), one after the other.
void train_by_hand(torch::nn::Sequential& model, int steps, bool by_rows = false) {
  std::map<std::size_t, std::vector<at::Tensor>> kept;
  session::MuonOptions muon{.lr = 0.02, .weight_decay = 0.1, .ns_method = "standard", .ns_dtype = "fp32"};
  session::MuonAdamOptions adam{.lr = 0.01, .eps = 1e-4, .weight_decay = 0.1};
  for (int step = 0; step < steps; ++step) {
    model->zero_grad();
    whole_loss(model, step).backward();
    c10::AutoGradMode no_grad(false);
    const auto parameters = model->parameters();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const auto& p = parameters[i];
      if (step == 0) kept[i] = {at::zeros_like(p), at::zeros_like(p)};
      if (p.dim() == 2) {
        muon.matrices = by_rows ? p.size(0) : 0;
        session::muon_step(p, p.grad(), kept[i][0], muon);
      } else {
        session::adam_step(p, p.grad(), kept[i][0], kept[i][1], step + 1, adam);
      }
    }
  }
}

// Catches a rank that orthogonalizes its part of a matrix instead of the whole matrix, AdamW's parameters that get the
// learning rate of Muon's, and optimizer state that is lost between steps.
TEST(Muon, TrainsAsInOneProcess) {
  auto expected = make_model();
  train_by_hand(expected, 3);
  for (const int stage : {0, 1, 2, 3}) {
    SCOPED_TRACE(fmt::format("stage {}", stage));
    on_two_ranks([&](int rank, const Options& options) {
      auto model = make_model();
      auto engine = initialize(*model, muon_config(stage, kMuon), options);
      EXPECT_EQ(engine.get_lr(), (std::vector<double>{0.02, 0.01}));
      train(engine, model, 0, 3, rank);
      expect_equal(model->parameters(), expected->parameters());
    });
  }
}

// Catches state that only the owner can read, that has another shape than the parameter, or that a write does not
// reach.
TEST(Muon, StateOfAWholeParameterIsReadAndWritten) {
  for (const int stage : {0, 1, 3}) {
    SCOPED_TRACE(fmt::format("stage {}", stage));
    on_two_ranks([stage](int rank, const Options& options) {
      auto model = make_model();
      auto engine = initialize(*model, muon_config(stage, kMuon), options);
      train(engine, model, 0, 1, rank);
      const auto matrix = model->parameters()[0];
      const auto momentum = engine.safe_get_full_optimizer_state(matrix, "momentum_buffer");
      ASSERT_TRUE(momentum.defined());
      EXPECT_EQ(momentum.sizes(), matrix.sizes());
      EXPECT_GT(momentum.abs().sum().item<double>(), 0);
      EXPECT_FALSE(engine.safe_get_full_optimizer_state(matrix, "exp_avg").defined());
      engine.safe_set_full_optimizer_state(matrix, momentum * 2, "momentum_buffer");
      EXPECT_TRUE(at::equal(engine.safe_get_full_optimizer_state(matrix, "momentum_buffer"), momentum * 2));
    });
  }
}

// Catches a checkpoint without the momentum, at another stage too.
TEST(Muon, GoesOnFromItsCheckpoint) {
  auto expected = make_model();
  train_by_hand(expected, 4);
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("muon_test.{}", ::getpid());
  for (const int stage : {1, 3}) {
    SCOPED_TRACE(fmt::format("stage {}", stage));
    std::filesystem::remove_all(folder);
    on_two_ranks([&](int rank, const Options& options) {
      auto model = make_model();
      auto engine = initialize(*model, muon_config(stage, kMuon), options);
      train(engine, model, 0, 2, rank);
      engine.save_checkpoint(folder);
    });
    on_two_ranks([&](int rank, const Options& options) {
      auto model = make_model();
      auto engine = initialize(*model, muon_config(3 - stage, kMuon), options);
      ASSERT_TRUE(engine.load_checkpoint(folder));
      train(engine, model, 2, 4, rank);
      expect_equal(model->parameters(), expected->parameters());
    });
  }
  std::filesystem::remove_all(folder);
}

/// A convolution, an embedding and a matrix.
struct Mixed : torch::nn::Module {
  Mixed()
      : conv(register_module("conv", torch::nn::Conv1d(2, 4, 3))),
        embed(register_module("embed", torch::nn::Embedding(4, 4))),
        head(register_module("head", torch::nn::Linear(4, 4))) {}
  torch::nn::Conv1d conv;
  torch::nn::Embedding embed;
  torch::nn::Linear head;
};

torch::nn::Sequential make_wide_model() {
  torch::nn::Sequential model(torch::nn::Linear(5, 500), torch::nn::Linear(500, 3));
  c10::AutoGradMode no_grad(false);
  for (auto& parameter : model->parameters()) {
    parameter.copy_(at::linspace(-0.1, 0.1, parameter.numel()).view(parameter.sizes()));
  }
  return model;
}

std::int64_t optimizer_bytes(const Engine& engine) {
  std::int64_t sum = 0;
  for (const auto& bytes : engine.memory_report().host) sum += bytes.optimizer;
  for (const auto& bytes : engine.memory_report().ranks) sum += bytes.optimizer;
  return sum;
}

// Catches momenta that stay in memory although the state is on a drive, or are on the drive although the configuration
// keeps them, and those of an earlier step in an update or a checkpoint.
TEST(Muon, StateOnADriveTrainsAsInMemory) {
  const std::filesystem::path folder =
      std::filesystem::path(testing::TempDir()) / fmt::format("muon_on_a_drive_{}", ::getpid());
  std::filesystem::create_directories(folder);
  auto expected = make_wide_model();
  train_by_hand(expected, 4);
  for (const bool in_memory : {false, true}) {
    SCOPED_TRACE(in_memory);
    const auto more = fmt::format(
        R"({{"zero_optimization": {{"save_muon_momentum_buffer_in_memory": {},
             "offload_optimizer": {{"device": "nvme", "nvme_path": "{}"}}}}}})",
        in_memory, folder.string());
    const std::string saved = folder / fmt::format("saved_{}", in_memory);
    on_two_ranks([&](int rank, const Options& options) {
      auto model = make_wide_model();
      const auto config = muon_config(2, kMuon).with(more.c_str());
      auto engine = initialize(*model, config, options);
      train(engine, model, 0, 2, rank);
      const std::int64_t small = 2 * 2 * 4 * 503;  // moments of the biases on both ranks
      const std::int64_t momenta = in_memory ? 4 * (5 * 500 + 500 * 3) : 0;
      EXPECT_GE(optimizer_bytes(engine), momenta);
      EXPECT_LE(optimizer_bytes(engine), momenta + small);
      engine.save_checkpoint(saved);
      train(engine, model, 2, 4, rank);
      expect_equal(model->parameters(), expected->parameters());
    });
    on_two_ranks([&](int rank, const Options& options) {
      auto model = make_wide_model();
      auto engine = initialize(*model, muon_config(3, kMuon).with(more.c_str()), options);
      ASSERT_TRUE(engine.load_checkpoint(saved));
      train(engine, model, 2, 4, rank);
      expect_equal(model->parameters(), expected->parameters());
    });
  }
  std::filesystem::remove_all(folder);
}

// Catches an embedding that is orthogonalized, a convolution's kernel that is treated as stacked matrices, and options
// of a group that are ignored.
TEST(Muon, DividesGroupsIntoHalves) {
  Mixed model;
  const auto config = config::Config::from_json(muon_config(0, kMuon).text(), 1, "test");
  const auto all = cpp::make_muon(config, model, {});
  ASSERT_EQ(all->param_groups().size(), 3U);
  const auto options_of = [&](const auto& muon, std::size_t group) {
    return static_cast<const cpp::MuonGroupOptions&>(muon->param_groups()[group].options());
  };
  EXPECT_EQ(all->param_groups()[0].params().size(), 1U);  // head.weight
  EXPECT_EQ(options_of(all, 0).muon.matrices, 0);
  EXPECT_EQ(options_of(all, 1).muon.matrices, 1);  // conv.weight
  EXPECT_FALSE(options_of(all, 2).use_muon);
  EXPECT_EQ(all->param_groups()[2].params().size(), 3U);
  ParameterGroup group;
  group.parameters = model.parameters();
  group.lr = 0.5;
  group.momentum = 0.75;
  group.betas = std::pair(0.5, 0.25);
  const auto given = cpp::make_muon(config, model, {group});
  EXPECT_EQ(options_of(given, 0).muon.lr, 0.5);
  EXPECT_EQ(options_of(given, 0).muon.momentum, 0.75);
  EXPECT_EQ(options_of(given, 2).adam.lr, 0.5);
  EXPECT_EQ(options_of(given, 2).adam.beta2, 0.25);
  EXPECT_EQ(options_of(given, 2).adam.eps, 1e-4);
  group.max_coeff = 1.0;
  EXPECT_THROW(cpp::make_muon(config, model, {group}), ConfigError);
}

// Catches a group's use_muon that does not count, heads that are orthogonalized together, and heads that do not fit or
// that nobody asked for.
TEST(Muon, GroupsSayWhatMuonUpdatesAndItsHeads) {
  Mixed model;
  const auto plain = config::Config::from_json(muon_config(0, kMuon).text(), 1, "test");
  const auto by_head = config::Config::from_json(
      muon_config(0, kMuon).with(R"({"optimizer": {"params": {"per_head_muon": true}}})").text(), 1, "test");
  const auto options_of = [&](const auto& muon, std::size_t group) {
    return static_cast<const cpp::MuonGroupOptions&>(muon->param_groups()[group].options());
  };
  ParameterGroup head;
  head.parameters = {model.head->weight};
  head.use_muon = false;
  ParameterGroup embed;
  embed.parameters = {model.embed->weight};
  embed.use_muon = true;
  const auto turned = cpp::make_muon(plain, model, {head, embed});
  ASSERT_EQ(turned->param_groups().size(), 2U);
  EXPECT_FALSE(options_of(turned, 0).use_muon);
  EXPECT_TRUE(options_of(turned, 1).use_muon);
  head.use_muon.reset();
  EXPECT_THROW(cpp::make_muon(by_head, model, {head}), ConfigError);
  head.muon_heads = 2;
  EXPECT_THROW(cpp::make_muon(plain, model, {head}), ConfigError);
  const auto heads = cpp::make_muon(by_head, model, {head});
  EXPECT_EQ(options_of(heads, 0).muon.matrices, 2);
  head.muon_heads = 3;
  EXPECT_THROW(cpp::make_muon(by_head, model, {head}), ConfigError);
  head.muon_heads = 0;
  EXPECT_THROW(cpp::make_muon(by_head, model, {head}), ConfigError);
  EXPECT_THROW(initialize(model, muon_config(0, R"({"optimizer": {"type": "AdamW"}})"), {.parameter_groups = {embed}}),
               ConfigError)
      << "AdamW has no such option";
}

// Catches heads that are lost on the way from the group to the step: each one is a matrix of its own, at every stage.
TEST(Muon, HeadsAreUpdatedByThemselves) {
  auto expected = make_model();
  train_by_hand(expected, 2, /*by_rows=*/true);
  for (const int stage : {0, 1, 3}) {
    SCOPED_TRACE(fmt::format("stage {}", stage));
    on_two_ranks([&](int rank, Options options) {
      auto model = make_model();
      for (const auto& parameter : model->parameters()) {
        auto& group = options.parameter_groups.emplace_back();
        group.parameters = {parameter};
        if (parameter.dim() == 2) group.muon_heads = parameter.size(0);
      }
      const auto config = muon_config(stage, kMuon).with(R"({"optimizer": {"params": {"per_head_muon": true}}})");
      auto engine = initialize(*model, config, options);
      train(engine, model, 0, 2, rank);
      expect_equal(model->parameters(), expected->parameters());
    });
  }
  auto whole = make_model();
  train_by_hand(whole, 2);
  EXPECT_FALSE(at::equal(whole->parameters()[0], expected->parameters()[0]));
}

/// A program's own class: steps in proportion to the parameter's norm.
class Ratio : public Optimizer {
 public:
  explicit Ratio(std::vector<at::Tensor> parameters)
      : Optimizer(std::move(parameters), std::make_unique<torch::optim::SGDOptions>(0.01)) {}

  at::Tensor step(LossClosure) override {
    c10::AutoGradMode no_grad(false);
    for (auto& parameter : param_groups()[0].params()) {
      const auto gradient = parameter.grad();
      if (!gradient.defined()) continue;
      if (fails) throw std::runtime_error("not today");
      const auto ratio = parameter.norm() / gradient.norm() * parameter.size(0);
      parameter.set_data(parameter - gradient * ratio * param_groups()[0].options().get_lr());
    }
    return {};
  }

  bool fails = false;
};

constexpr const char* kParameters = R"({"zeropage": {"optimizer_sees": "parameters"}})";

// Catches norms of parts instead of whole parameters, and flat shapes.
TEST(WholeParameters, AnObjectThatSeesThemTrainsAsInPlainLibtorch) {
  auto expected = make_model();
  Ratio plain(expected->parameters());
  train_by_libtorch(expected, plain, 0, 3);
  for (const int stage : {0, 1, 2, 3}) {
    SCOPED_TRACE(fmt::format("stage {}", stage));
    on_two_ranks([&](int rank, Options options) {
      auto model = make_model();
      options.optimizer = std::make_shared<Ratio>(model->parameters());
      auto engine = initialize(*model, muon_config(stage, kParameters), options);
      train(engine, model, 0, 3, rank);
      expect_equal(model->parameters(), expected->parameters());
    });
  }
}

// Catches an object that runs on parts although its needs are unknown, or on only some of the parameters over which it
// sums; and a step that fails on one rank and changes parameters on the other.
TEST(WholeParameters, WhatCannotRunIsSaid) {
  on_two_ranks([](int rank, Options options) {
    auto model = make_model();
    const auto object = std::make_shared<Ratio>(model->parameters());
    options.optimizer = object;
    EXPECT_THROW(initialize(*model, muon_config(1, "{}"), options), ConfigError);
    EXPECT_THROW(initialize(*model, muon_config(1, R"({"zeropage": {"optimizer_sees": "model"}})"), options),
                 ConfigError);
    auto engine = initialize(*model, muon_config(1, kParameters), options);
    engine.backward(loss_of(model, batch_of(0, rank)));
    object->fails = rank == 1;
    std::vector<at::Tensor> before;
    for (const auto& p : model->parameters()) before.push_back(p.detach().clone());
    try {
      engine.step();
      ADD_FAILURE() << "rank " << rank << " did not fail";
    } catch (const PeerError& error) {
      EXPECT_EQ(rank, 0) << error.what();
      EXPECT_NE(std::string(error.what()).find("not today"), std::string::npos) << error.what();
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(rank, 1) << error.what();
    }
    for (std::size_t i = 0; i < before.size(); ++i) {
      EXPECT_TRUE(at::equal(model->parameters()[i].detach(), before[i]));
    }
  });
}

}  // namespace
}  // namespace zeropage
