// The journey of gradients and parameters to an update elsewhere, within one memory.
#include "zeropage/engine/staging.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sum.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "zeropage/engine/page_update.h"
#include "zeropage/engine/reduce_policy.h"
#include "zeropage/engine/speculation.h"
#include "zeropage/engine/test_model.h"

namespace zeropage::engine {
namespace {

constexpr int kStagedParameters = 5;

config::Config staging_config(config::Precision precision, bool masters) {
  config::Config config;
  config.precision = precision;
  config.optimizer.kind = config::OptimizerKind::kAdamW;
  config.fp32_masters = masters;
  config.zero.stage = 1;
  config.zero.offload = {.optimizer = config::OffloadDevice::kCpu, .optimizer_ratio = 0.6};
  config.zeropage.page_numel = 1;  // a page per parameter
  return config;
}

/// Three updates of parameters of different sizes. The last parameter gets no gradient in the second update.
std::vector<at::Tensor> train(config::Precision precision, CopiedPages copied_pages, std::int64_t log_bytes = 0,
                              bool masters = true) {
  const auto config = staging_config(precision, masters);
  const TestModel model({1000, 2000, 3000, 4000, 5000});
  const auto& parameters = model.parameters;
  const auto& communicator = model.communicator;
  const auto& ledger = model.ledger;
  ModelState state(model.inputs, config, communicator, c10::kCPU, ledger);
  reduce::Reducer reducer(state.layout(), state.tensors(), communicator, c10::kCPU, ledger,
                          reduce_policy(config, state, communicator->rank(), c10::kCPU, ledger));
  UpdatePass pass(state, reducer, c10::kCPU, optimizer_host(config, c10::kCPU), ledger, copied_pages);
  EXPECT_EQ(ledger->current_bytes(MemoryKind::kBuffers, Tier::kHost) > 0, copied_pages == CopiedPages::kAlways);
  Speculation speculation(config, state, reducer, pass, c10::kCPU, log_bytes, ledger);
  const std::vector<config::OptimizerParams> groups{{.lr = 0.01}};
  for (int step = 1; step <= 3; ++step) {
    std::vector<bool> received(kStagedParameters, true);
    received.back() = step != 2;
    // The second step's is undone: the global check says other than this rank has thought.
    speculation.begin(step == 2 ? 3.0 : 2.0, groups, std::vector<std::int64_t>(kStagedParameters, step - 1));
    reducer.begin_backward(true);
    for (int i = 0; i < kStagedParameters; ++i) {
      if (!received[i]) continue;
      const auto weights = at::arange(parameters[i].numel()).to(parameters[i].scalar_type());
      torch::autograd::backward({at::sum(at::mul(at::mul(parameters[i], parameters[i]), weights))}, {});
    }
    reducer.end_backward();
    reducer.finish();
    speculation.wait();
    const std::vector<std::int64_t> steps(kStagedParameters, step);
    std::vector<int> pages;
    for (int i = 0; i < kStagedParameters; ++i) {
      if (received[i]) pages.push_back(state.layout()->page_of(i));
    }
    const UpdateInputs update{config::OptimizerKind::kAdamW, groups, steps, received, 0.5F};
    const int ahead = speculation.close();
    EXPECT_EQ(ahead > 0, log_bytes > 0 && step != 3) << "the step after one that was undone waits";
    EXPECT_EQ(speculation.validate(update), step == 2 ? 0 : ahead);
    update_pages(pass, pages, update, speculation, [](int) {});
    reducer.reset();
  }
  c10::AutoGradMode no_grad(false);
  std::vector<at::Tensor> values;
  for (const auto& parameter : parameters) values.push_back(parameter.detach().clone());
  return values;
}

// Catches slots that are filled again too early, results that are not copied back, and parameters that are their own
// master and are not copied.
TEST(Staging, CopiesChangeNoBit) {
  for (const auto precision : {config::Precision::kFp32, config::Precision::kBf16}) {
    for (const bool masters : {true, false}) {
      const auto in_place = train(precision, CopiedPages::kBetweenMemories, 0, masters);
      const auto copied = train(precision, CopiedPages::kAlways, 0, masters);
      for (int i = 0; i < kStagedParameters; ++i) {
        EXPECT_TRUE(in_place[i].equal(copied[i])) << i;
        EXPECT_FALSE(in_place[i].equal(at::ones_like(in_place[i]))) << i << " was not trained";
      }
    }
  }
}

// Catches speculative updates that do not stop at a page that the log has no room for, leave something behind when they
// are undone, or whose parameters are not copied back.
TEST(Staging, UpdatesBeforeTheGlobalCheckChangeNoBit) {
  constexpr std::int64_t kLogs[] = {1 << 20, 1 << 16};  // for all pages, and for some
  for (const std::int64_t log_bytes : kLogs) {
    for (const auto precision : {config::Precision::kFp32, config::Precision::kBf16}) {
      const auto waited = train(precision, CopiedPages::kBetweenMemories);
      const bool is_own_master = precision == config::Precision::kFp32;
      const auto ahead =
          train(precision, is_own_master ? CopiedPages::kBetweenMemories : CopiedPages::kAlways, log_bytes);
      for (int i = 0; i < kStagedParameters; ++i) EXPECT_TRUE(waited[i].equal(ahead[i])) << i;
    }
  }
}

}  // namespace
}  // namespace zeropage::engine
