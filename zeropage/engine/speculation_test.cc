// What of the queue is left when a step begins. The bits of updates beside the backward: transit_test.cc, tests/test_speculation.py.
#include "zeropage/engine/speculation.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/sum.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "zeropage/comm/test_ranks.h"
#include "zeropage/comm/thread_communicator.h"
#include "zeropage/engine/engine.h"
#include "zeropage/engine/reduce_policy.h"

namespace zeropage::engine {
namespace {

constexpr int kParameters = 16;
constexpr std::int64_t kNumel = 1 << 19;

// Catches a step that waits for every page that was offered, one after the other, before its verdict.
TEST(Speculation, ClosingWaitsForOnePageOnly) {
  config::Config config;
  config.precision = config::Precision::kBf16;
  config.optimizer.kind = config::OptimizerKind::kAdamW;
  config.zero.stage = 1;
  config.zero.offload = {.optimizer = config::OffloadDevice::kCpu};
  config.own.page_numel = 1;  // a page per parameter
  std::shared_ptr<comm::Communicator> communicator =
      std::move(comm::make_thread_communicators(1, std::chrono::seconds(20))[0]);
  const auto ledger = std::make_shared<Ledger>();
  std::vector<at::Tensor> parameters;
  std::vector<ParameterInput> inputs;
  for (int i = 0; i < kParameters; ++i) {
    parameters.push_back(at::ones({kNumel}).set_requires_grad(true));
    inputs.push_back({"p" + std::to_string(i), parameters.back(), 0});
  }
  ModelState state(inputs, config, communicator, c10::kCPU, ledger);
  reduce::Reducer reducer(state.layout(), state.tensors(), communicator, c10::kCPU, ledger,
                          reduce_policy(config, state, communicator->rank(), c10::kCPU, ledger));
  Transit transit(state, reducer, c10::kCPU, optimizer_host(config, c10::kCPU), ledger);
  Speculation speculation(config, state, reducer, transit, c10::kCPU, 14 * kParameters * kNumel, ledger);
  const auto train = [&] {
    speculation.expect(1.0, {{.lr = 0.01}}, std::vector<std::int64_t>(kParameters, 0));
    reducer.begin_backward(true);
    // Pages are reduced from the last one on: all of them when its gradient has come.
    for (const auto& parameter : parameters) torch::autograd::backward({at::sum(parameter)}, {});
  };
  train();
  EXPECT_LT(speculation.close(), kParameters);
  speculation.undo();
  reducer.reset();
  speculation.settle({config.optimizer.kind, {}, {}, {}, 1.0F, nullptr});  // a step that went as expected
  train();
  speculation.wait();
  EXPECT_EQ(speculation.close(), kParameters);
}

}  // namespace
}  // namespace zeropage::engine
