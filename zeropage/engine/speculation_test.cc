// What of the queue is left when a step begins. The bits of updates overlapped with the backward: staging_test.cc,
// tests/test_speculation.py.
#include "zeropage/engine/speculation.h"

#include <ATen/Parallel.h>
#include <ATen/ops/sum.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <filesystem>
#include <iterator>

#include "zeropage/engine/reduce_policy.h"
#include "zeropage/engine/test_model.h"

namespace zeropage::engine {
namespace {

constexpr int kParameters = 16;
constexpr std::int64_t kParameterNumel = 1 << 19;

struct SpeculationTest : testing::Test {
  static config::Config make_config() {
    config::Config config;
    config.precision = config::Precision::kBf16;
    config.optimizer.kind = config::OptimizerKind::kAdamW;
    config.zero.stage = 1;
    config.zero.offload = {.optimizer = config::OffloadDevice::kCpu};
    config.zeropage.page_numel = 1;  // a page per parameter
    return config;
  }

  void train() {
    speculation.begin(1.0, {{.lr = 0.01}}, std::vector<std::int64_t>(kParameters, 0));
    reducer.begin_backward(true);
    // Pages are reduced from the last one on: all of them when its gradient has come.
    for (const auto& parameter : model.parameters) torch::autograd::backward({at::sum(parameter)}, {});
  }

  const config::Config config = make_config();
  const TestModel model{std::vector<std::int64_t>(kParameters, kParameterNumel)};
  ModelState state{model.inputs, config, model.communicator, c10::kCPU, model.ledger};
  reduce::Reducer reducer{
      state.layout(),     state.tensors(),
      model.communicator, c10::kCPU,
      model.ledger,       reduce_policy(config, state, model.communicator->rank(), c10::kCPU, model.ledger)};
  UpdatePass pass{state, reducer, c10::kCPU, optimizer_host(config, c10::kCPU), model.ledger};
  Speculation speculation{config, state, reducer, pass, c10::kCPU, 14 * kParameters* kParameterNumel, model.ledger};
};

std::int64_t threads_of_process() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return std::distance(std::filesystem::begin(tasks), std::filesystem::end(tasks));
}

// Catches a step that waits for every page that was offered, one after the other, before its global check.
TEST_F(SpeculationTest, ClosingWaitsForOnePageOnly) {
  train();
  EXPECT_LT(speculation.close(), kParameters);
  speculation.undo();
  reducer.reset();
  speculation.validate({config.optimizer.kind, {}, {}, {}, 1.0F, nullptr});  // a step that went as expected
  train();
  speculation.wait();
  EXPECT_EQ(speculation.close(), kParameters);
}

constexpr int kProcessors = 5;

/// The number of torch's threads, as on a machine with so many processors. The calling thread has its team.
struct Processors {
  Processors() {
    at::set_num_threads(kProcessors);
    at::parallel_for(0, kProcessors, 1, [](std::int64_t, std::int64_t) {});
  }
  ~Processors() { at::set_num_threads(before); }

  const int before = at::get_num_threads();
};

struct TeamTest : Processors, SpeculationTest {};

// Catches updates that run during the backward with as many threads as there are processors, although the backward
// needs one processor to launch its work; and updates with only one thread.
TEST_F(TeamTest, UpdatesBesideTheBackwardLeaveAProcessor) {
  const std::int64_t before_update = threads_of_process();
  train();
  speculation.wait();
  EXPECT_EQ(speculation.close(), kParameters);
  EXPECT_EQ(threads_of_process() - before_update, kProcessors - 2);  // and the queue's thread itself
}

}  // namespace
}  // namespace zeropage::engine
