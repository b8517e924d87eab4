#include <algorithm>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/module.h>

#include "zeropage/cpp/test_ranks.h"

namespace zeropage {
namespace {

constexpr std::int64_t kSide = 64;

/// Pages of one parameter; two of a module's eight may be resident at once.
Config config() {
  return Config::from_json(R"({
  "train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "AdamW"}, "zeropage": {"page_numel": 1},
  "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 8192}})");
}

struct Matrices : torch::nn::Module {
  explicit Matrices(int rank) {
    for (int i = 0; i < 8; ++i) {
      all.push_back(register_parameter("m" + std::to_string(i), at::full({kSide, kSide}, i + 100.0 * rank)));
    }
    mask = register_buffer("mask", at::full({kSide, kSide}, 3.0 + rank));
  }
  int absent() const {
    int count = 0;
    for (const auto& matrix : all) {
      try {
        matrix.data_ptr();
      } catch (const c10::Error&) {
        ++count;
      }
    }
    return count;
  }
  std::vector<at::Tensor> all;
  at::Tensor mask;
};

double first(const at::Tensor& matrix) { return *static_cast<const float*>(matrix.data_ptr()); }

// Catches a scope that shards nothing, parameters that keep this rank's values, and a buffer that stays in shards.
TEST(Init, ShardsWhatIsMadeInsideAndTheEngineTakesItOver) {
  on_two_ranks([](int rank, const Options& options) {
    std::unique_ptr<Matrices> model;
    {
      const Init scope(config(), options);
      model = std::make_unique<Matrices>(rank);
      EXPECT_GE(model->absent(), 4);
    }
    auto engine = initialize(*model, config(), options);
    for (int i = 0; i < 8; ++i) EXPECT_EQ(model->all[i].mean().item<double>(), i);
    EXPECT_EQ(first(model->mask), 3.0f);
    engine.backward((model->all[0].matmul(model->all[7])).mean());
    engine.step();
    EXPECT_TRUE(engine.was_step_applied());
  });
}

// Catches raw access to sharded parameters that fails, and an edit of one rank that the others do not get.
TEST(Init, GatheredBeforeTheEngineIsMade) {
  on_two_ranks([](int rank, const Options& options) {
    const Init scope(config(), options);
    const Matrices model(rank);
    {
      const auto whole = gathered(model.all, /*modifier_rank=*/1);
      for (int i = 0; i < 6; ++i) EXPECT_EQ(first(model.all[i]), i);
      if (rank == 1) std::fill_n(static_cast<float*>(model.all[3].data_ptr()), kSide * kSide, 42.0f);
    }
    EXPECT_EQ(model.all[3].mean().item<double>(), 42.0);
    EXPECT_THROW(gathered(model.all, -1), UsageError);
  });
}

TEST(Init, AdoptsAModuleThatWasMadeBefore) {
  on_two_ranks([](int rank, const Options& options) {
    const Matrices model(rank);
    Init scope(config(), options);
    scope.adopt(model);
    EXPECT_GE(model.absent(), 4);
    EXPECT_EQ(model.all[0].mean().item<double>(), 0.0);
  });
}

// Catches a scope that communicates although parameters are whole, so that a rank that builds its model alone waits.
TEST(Init, DoesNothingBelowStage3AndForOneRank) {
  on_two_ranks([](int rank, const Options& options) {
    if (rank == 1) return;
    const Init scope(config().with(R"({"zero_optimization": {"stage": 2}})"), options);
    EXPECT_EQ(Matrices(rank).absent(), 0);
  });
  const Init scope(config());
  EXPECT_EQ(Matrices(0).absent(), 0);
}

}  // namespace
}  // namespace zeropage
