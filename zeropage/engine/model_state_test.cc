// The places of a model's parameters and their state, stage by stage.
#include "zeropage/engine/model_state.h"

#include <ATen/ops/full.h>
#include <ATen/ops/ne.h>
#include <ATen/ops/sum.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "zeropage/base/error.h"
#include "zeropage/comm/testing/test_ranks.h"
#include "zeropage/engine/engine.h"
#include "zeropage/engine/test_model.h"

namespace zeropage::engine {
namespace {

constexpr std::int64_t kModelNumel = 4096;
constexpr int kModelParameters = 4;

config::Config model_config(int stage) {
  config::Config config;
  config.zero.stage = stage;
  config.zero.persistence_threshold_numel = 0;
  config.zeropage.page_numel = kModelNumel;  // a page per parameter
  return config;
}

std::shared_ptr<comm::Communicator> borrowed_parameters(comm::Communicator& communicator) {
  return {&communicator, [](auto*) {}};
}

/// Parameters whose values are 10 * rank + index.
std::vector<ParameterInput> make_inputs(int rank) {
  std::vector<ParameterInput> inputs;
  for (int i = 0; i < kModelParameters; ++i) {
    inputs.push_back({"p" + std::to_string(i), at::full({kModelNumel}, 10.0 * rank + i).set_requires_grad(true), 0});
  }
  return inputs;
}

std::vector<std::string> run_ranks(const comm::RankBody& body) {
  return comm::run_threads(2, comm::kRankTimeout, body);
}

// Catches ranks that keep different values, parameters that are other tensors than before, and a rank that updates more
// or less than its part.
TEST(ModelState, EveryRankHasTheValuesOfRank0AndUpdatesItsPart) {
  for (const int stage : {0, 1, 3}) {
    const auto config = model_config(stage);
    const auto body = [&](comm::Communicator& communicator) {
      const c10::AutoGradMode no_grad(false);
      const auto inputs = make_inputs(communicator.rank());
      ModelState state(inputs, config, borrowed_parameters(communicator), c10::kCPU, std::make_shared<Ledger>());
      communicator.barrier({"made"});  // as an engine does when it continues: a peer may still fill its shards
      const bool sharded = stage == 3;
      EXPECT_EQ(state.anything_paged(), sharded);
      for (int i = 0; i < kModelParameters; ++i) {
        EXPECT_EQ(at::ne(inputs[i].tensor, i).sum().item<std::int64_t>(), 0)
            << "parameter " << i << " begins with " << inputs[i].tensor[0].item<float>() << ", stage " << stage;
        const int page = state.layout()->page_of(i);
        const auto& own = state.owned(page);
        EXPECT_EQ(own.numel, stage == 0 ? kModelNumel : kModelNumel / 2);
        EXPECT_EQ(own.begin, stage == 0 ? 0 : communicator.rank() * kModelNumel / 2);
        EXPECT_EQ(*reinterpret_cast<const float*>(own.parameter), static_cast<float>(i));
        EXPECT_EQ(state.whole_page(page) == nullptr, sharded);
        EXPECT_TRUE(state.is_own_master(page)) << "fp32";
      }
      communicator.barrier({"done"});
      state.leave_parameters();
    };
    for (const auto& outcome : run_ranks(body)) EXPECT_EQ(outcome, "") << "stage " << stage;
  }
}

// Catches a limit given in elements that overflows as bytes: a large stage3_max_reuse_distance, which keeps pages
// resident, would become negative and evict every page immediately.
TEST(ModelState, HugeLimitsDoNotOverflow) {
  auto config = model_config(3);
  config.zero.max_reuse_distance_numel = INT64_MAX / 2;
  config.zero.prefetch_bucket_numel = INT64_MAX / 2;
  config.zero.max_live_numel = INT64_MAX / 2;
  const auto body = [&](comm::Communicator& communicator) {
    const c10::AutoGradMode no_grad(false);
    const auto inputs = make_inputs(communicator.rank());
    ModelState state(inputs, config, borrowed_parameters(communicator), c10::kCPU, std::make_shared<Ledger>());
    communicator.barrier({"made"});
    for (int pass = 0; pass < 3; ++pass) {
      for (const auto& input : inputs) EXPECT_GE(at::sum(input.tensor).item<double>(), 0.0);
      state.pager().end_pass();
    }
    for (const auto& page : state.pager().page_counts()) {
      EXPECT_EQ(page.evictions, 0) << page.label;
      EXPECT_EQ(page.faults, 1) << page.label;
    }
    communicator.barrier({"done"});
    state.leave_parameters();
  };
  for (const auto& outcome : run_ranks(body)) EXPECT_EQ(outcome, "");
}

// Catches an update that begins while a user's write is not part of the state, and one that is taken for a user's.
TEST(ModelState, KnowsWhatUsersWrote) {
  const TestModel model({100, 200});
  auto config = model_config(1);
  config.zeropage.page_numel = 1;  // a page per parameter
  ModelState state(model.inputs, config, model.communicator, c10::kCPU, model.ledger);
  state.mark_writes_as_equal();
  EXPECT_EQ(state.written_pages(), (std::vector<bool>{false, false}));
  {
    const c10::AutoGradMode no_grad(false);
    model.parameters[1].fill_(5.0);
  }
  EXPECT_EQ(state.written_pages(), (std::vector<bool>{false, true}));
  EXPECT_EQ(*reinterpret_cast<const float*>(state.owned(1).parameter), 5.0F);
  state.mark_writes_as_equal();
  EXPECT_EQ(state.written_pages(), (std::vector<bool>{false, false}));
  model.parameters[0].set_data(at::full({100}, 3.0));
  state.adopt_replaced_data();
  EXPECT_TRUE(state.written_pages()[0]);
  EXPECT_EQ(*reinterpret_cast<const float*>(state.owned(0).parameter), 3.0F);
  model.parameters[0].set_data(at::full({50}, 3.0));
  EXPECT_THROW(state.adopt_replaced_data(), UsageError) << "another shape";
}

// Catches a model that is partly adopted before its faults are found, and messages without the parameter's name.
TEST(ModelState, RefusesModelsThatItCannotPlace) {
  const auto config = model_config(1);
  TestModel model({100, 200});
  const auto make = [&](const std::vector<ParameterInput>& inputs) {
    return comm::outcome_of([&] { ModelState(inputs, config, model.communicator, c10::kCPU, model.ledger); });
  };
  EXPECT_NE(make({}), "");
  auto shared = model.inputs;
  shared[1].tensor = shared[0].tensor.detach().set_requires_grad(true);
  const auto outcome = make(shared);
  EXPECT_TRUE(comm::contains(outcome, "p0")) << outcome;
  EXPECT_TRUE(comm::contains(outcome, "p1")) << outcome;
}

}  // namespace
}  // namespace zeropage::engine
