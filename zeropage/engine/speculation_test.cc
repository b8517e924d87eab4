// What of the queue is left when a step begins. The bits of updates overlapped with the backward: staging_test.cc,
// tests/test_speculation.py.
#include "zeropage/engine/speculation.h"

#include <ATen/ops/sum.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "zeropage/engine/reduce_policy.h"
#include "zeropage/engine/test_model.h"

namespace zeropage::engine {
namespace {

constexpr int kParameters = 16;
constexpr std::int64_t kParameterNumel = 1 << 19;

// Catches a step that waits for every page that was offered, one after the other, before its global check.
TEST(Speculation, ClosingWaitsForOnePageOnly) {
  config::Config config;
  config.precision = config::Precision::kBf16;
  config.optimizer.kind = config::OptimizerKind::kAdamW;
  config.zero.stage = 1;
  config.zero.offload = {.optimizer = config::OffloadDevice::kCpu};
  config.zeropage.page_numel = 1;  // a page per parameter
  const TestModel model(std::vector<std::int64_t>(kParameters, kParameterNumel));
  ModelState state(model.inputs, config, model.communicator, c10::kCPU, model.ledger);
  reduce::Reducer reducer(state.layout(), state.tensors(), model.communicator, c10::kCPU, model.ledger,
                          reduce_policy(config, state, model.communicator->rank(), c10::kCPU, model.ledger));
  UpdatePass pass(state, reducer, c10::kCPU, optimizer_host(config, c10::kCPU), model.ledger);
  Speculation speculation(config, state, reducer, pass, c10::kCPU, 14 * kParameters * kParameterNumel, model.ledger);
  const auto train = [&] {
    speculation.begin(1.0, {{.lr = 0.01}}, std::vector<std::int64_t>(kParameters, 0));
    reducer.begin_backward(true);
    // Pages are reduced from the last one on: all of them when its gradient has come.
    for (const auto& parameter : model.parameters) torch::autograd::backward({at::sum(parameter)}, {});
  };
  train();
  EXPECT_LT(speculation.close(), kParameters);
  speculation.undo();
  reducer.reset();
  speculation.validate({config.optimizer.kind, {}, {}, {}, 1.0F, nullptr});  // a step that went as expected
  train();
  speculation.wait();
  EXPECT_EQ(speculation.close(), kParameters);
}

}  // namespace
}  // namespace zeropage::engine
