// C++ programs whose ranks share state in groups (zeropage.shard_ranks).
#include <gtest/gtest.h>
#include <torch/optim/sgd.h>

#include <filesystem>

#include "zeropage/comm/hosts/group_communicator.h"
#include "zeropage/cpp/test_training.h"

namespace zeropage {
namespace {

constexpr int kGroupRanks = 2;
constexpr int kJobRanks = 4;

Config grouped_config(int stage) {
  return Config::from_json(R"({"train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}},
    "zero_optimization": {"stage": )" +
                           std::to_string(stage) +
                           R"(, "stage3_param_persistence_threshold": 0}, "zeropage": {"shard_ranks": 2}})");
}

/// Runs `body(rank, options)` on four ranks in two groups.
template <class Body>
void on_two_groups(Body body) {
  const auto make = [] {
    return comm::make_thread_groups(kJobRanks / kGroupRanks, kGroupRanks, std::chrono::seconds(20));
  };
  auto communicators = make();
  auto reductions = make();
  std::vector<Options> ranks(kJobRanks);
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    ranks[rank].communicator = std::move(communicators[rank]);
    ranks[rank].reductions = std::move(reductions[rank]);
  }
  on_ranks(std::move(ranks), body);
}

std::vector<at::Tensor> reference_of_four_ranks(int steps) {
  auto model = make_model();
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  for (int step = 0; step < steps; ++step) {
    std::vector<at::Tensor> batches;
    for (int rank = 0; rank < kJobRanks; ++rank) batches.push_back(batch_of(step, rank));
    optimizer.zero_grad();
    loss_of(model, at::cat(batches)).backward();
    optimizer.step();
  }
  return model->parameters();
}

// Catches means over a group, sizes of a group that a program sees as those of the job, and checkpoints of one group.
TEST(Groups, AProgramTrainsSavesAndLoads) {
  const auto expected = reference_of_four_ranks(6);
  for (const int stage : {2, 3}) {
    const auto folder = std::filesystem::temp_directory_path() / ("zeropage-groups-" + std::to_string(getpid()));
    on_two_groups([&](int rank, const Options& options) {
      auto model = make_model();
      auto engine = initialize(*model, grouped_config(stage), options);
      EXPECT_EQ(engine.global_rank(), rank);
      EXPECT_EQ(engine.dp_world_size(), kJobRanks);
      EXPECT_EQ(engine.mean_over_ranks(rank), 1.5);
      train(engine, model, 0, 3, rank);
      engine.save_checkpoint(folder.string());
      train(engine, model, 3, 5, rank);
      engine.load_checkpoint(folder.string());
      train(engine, model, 3, 6, rank);
      const auto kept = gathered(model->parameters());
      expect_equal(model->parameters(), expected);
    });
    std::filesystem::remove_all(folder);
  }
}

// Catches communicators of a program that do not have the groups of its configuration.
TEST(Groups, OthersThanThoseOfTheConfigurationAreRefused) {
  on_two_ranks([](int, const Options& options) {
    auto model = make_model();
    const auto config = grouped_config(3).with(R"({"zeropage": {"shard_ranks": 0}})");
    initialize(*model, config, options);
  });
  on_two_groups([](int, const Options& options) {
    auto model = make_model();
    const auto config = grouped_config(3).with(R"({"zeropage": {"shard_ranks": 0}})");
    EXPECT_THROW(initialize(*model, config, options), ConfigError);
  });
}

}  // namespace
}  // namespace zeropage
