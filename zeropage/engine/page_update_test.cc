// The pages and segments that an update changes, and the factors, without running it.
#include "zeropage/engine/page_update.h"

#include <ATen/ops/full_like.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "zeropage/base/error.h"
#include "zeropage/engine/test_model.h"

namespace zeropage::engine {
namespace {

config::Config update_config(std::int64_t page_numel) {
  config::Config config;
  config.optimizer.kind = config::OptimizerKind::kAdamW;
  config.zeropage.page_numel = page_numel;
  return config;
}

// Catches moments and decay of a parameter without a gradient that change with its page, and a page that is visited
// though none of its parameters has one.
TEST(Update, LeavesOutParametersWithoutGradients) {
  const TestModel model({100, 200, 300});
  const auto config = update_config(1 << 20);
  const ModelState state(model.inputs, config, model.communicator, c10::kCPU, model.ledger);
  ASSERT_EQ(state.layout()->pages().size(), 1);
  const std::vector<config::OptimizerParams> groups{{.lr = 0.25}};
  const std::vector<std::int64_t> steps{4, 7, 9};
  const std::vector<bool> received{true, false, true};
  const UpdateInputs inputs{config::OptimizerKind::kAdamW, groups, steps, received, 0.5F};
  const auto changed = changed_segments(state, 0, inputs);
  EXPECT_FALSE(changed.all);
  EXPECT_EQ(changed.parameters, (std::vector<int>{0, 2}));
  ASSERT_EQ(changed.segments.size(), 2);
  EXPECT_EQ(changed.segments[1].numel, 300);
  EXPECT_EQ(changed.segments[1].offset, state.layout()->offset_of(2));
  EXPECT_EQ(changed.segments[1].step.step, 9);
  EXPECT_EQ(changed.segments[1].step.gradient_scale, 0.5F);
  EXPECT_EQ(changed.segments[1].step.params.lr, 0.25);
  EXPECT_EQ(updated_pages(*state.layout(), received), std::vector<int>{0});
  EXPECT_TRUE(updated_pages(*state.layout(), {false, false, false}).empty());
}

// Catches two parameters, or two steps of one, that round by the same random numbers: their errors would add up.
TEST(Update, RoundsEveryParameterAndStepByAKeyOfItsOwn) {
  const std::vector<config::OptimizerParams> groups{{}};
  const std::vector<bool> received{true, true};
  std::set<std::uint64_t> keys;
  for (const std::int64_t step : {1, 2}) {
    const std::vector<std::int64_t> steps{step, step};
    const UpdateInputs inputs{config::OptimizerKind::kAdamW, groups, steps, received};
    for (const int parameter : {0, 1}) keys.insert(step_of(inputs, 0, parameter).rounding_key);
  }
  EXPECT_EQ(keys.size(), 4);
}

// Catches a mean that is a sum (or the other way round), and a predivision or a loss scale that stays in the gradients.
TEST(Update, DividesByWhatGradientsWereMultipliedBy) {
  auto config = update_config(1);
  EXPECT_EQ(gradient_divisor(config, 4, 1.0), 4.0);
  EXPECT_EQ(gradient_divisor(config, 4, 1024.0), 4096.0);
  config.gradients.prescale = true;
  config.gradients.predivide_factor = 8.0;
  EXPECT_EQ(gradient_divisor(config, 4, 1.0), 0.5);
  config.gradients.sum_instead_of_mean = true;
  EXPECT_EQ(gradient_divisor(config, 4, 1.0), 0.125);
}

// Catches an optimizer that writes to state which was not made, because a momentum was switched on later.
TEST(Update, RefusesHyperparametersThatNeedMoreState) {
  config::Optimizer optimizer;
  optimizer.kind = config::OptimizerKind::kSgd;
  EXPECT_NO_THROW(require_states(optimizer, {{}}));
  config::OptimizerParams with_momentum;
  with_momentum.momentum = 0.9;
  EXPECT_THROW(require_states(optimizer, {{}, with_momentum}), UsageError);
}

// Catches parameters without masters, or packed moments, under an optimizer that cannot round them.
TEST(Update, RefusesTypesThatItCannotRound) {
  auto config = update_config(1);
  EXPECT_NO_THROW(require_one_pass(config, c10::kCPU));
  config.fp32_masters = false;
  EXPECT_NO_THROW(require_one_pass(config, c10::kCPU));
  config.optimizer.kind = config::OptimizerKind::kLamb;
  EXPECT_THROW(require_one_pass(config, c10::kCPU), ConfigError);
}

// Catches squares of parameters of other ranks in this rank's sum, and an overflow that is blamed on a later parameter.
TEST(Update, SumsSquaresAndNamesTheFirstParameterThatOverflows) {
  const TestModel model({100, 200, 300});
  const auto config = update_config(1);
  ModelState state(model.inputs, config, model.communicator, c10::kCPU, model.ledger);
  reduce::ReducePolicy policy;
  policy.sharded = true;
  reduce::Reducer reducer(state.layout(), state.tensors(), model.communicator, c10::kCPU, model.ledger, policy);
  const auto run = [&](std::vector<float> values) {
    reducer.reset();
    reducer.begin_backward(true);
    for (std::size_t i = 0; i < values.size(); ++i) {
      model.parameters[i].mutable_grad() = at::full_like(model.parameters[i], values[i]);
    }
    reducer.end_backward();
    reducer.finish();
    return sum_gradients(state, reducer, 0);
  };
  const auto finite = run({1.0F, 2.0F, 3.0F});
  EXPECT_EQ(finite.sum_of_squares, 100 * 1.0 + 200 * 4.0 + 300 * 9.0);
  EXPECT_EQ(finite.overflow_parameter, -1);
  const auto infinite = run({1.0F, INFINITY, INFINITY});
  EXPECT_FALSE(std::isfinite(infinite.sum_of_squares));
  EXPECT_EQ(infinite.overflow_parameter, 1);
}

}  // namespace
}  // namespace zeropage::engine
