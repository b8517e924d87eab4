// The state of an engine after a failure in the middle of a pass.
#include <ATen/Parallel.h>
#include <ATen/ops/add.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sum.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "zeropage/comm/testing/fault_communicator.h"
#include "zeropage/comm/testing/test_ranks.h"
#include "zeropage/engine/engine.h"

namespace zeropage::engine {
namespace {

using comm::contains;
using std::chrono::seconds;

config::Config failure_config(int stage, int world) {
  config::Config config;
  config.batch.micro_batch_size = 1;
  config.batch.train_batch_size = world;
  config.zero.stage = stage;
  config.zero.persistence_threshold_numel = 0;
  config.zero.max_live_numel = 4096;
  config.zeropage.page_numel = 4096;
  return config;
}

std::unique_ptr<Engine> make_engine(const std::vector<at::Tensor>& parameters, const config::Config& config,
                                    std::shared_ptr<comm::Communicator> communicator) {
  std::vector<ParameterInput> inputs;
  for (const auto& parameter : parameters) inputs.push_back({"p" + std::to_string(inputs.size()), parameter, 0});
  return std::make_unique<Engine>(inputs, std::vector<config::OptimizerParams>{{}}, config, std::move(communicator),
                                  c10::Device(c10::kCPU));
}

std::vector<at::Tensor> make_parameters() {
  std::vector<at::Tensor> parameters;
  for (int i = 0; i < 3; ++i) parameters.push_back(at::ones({4096}).set_requires_grad(true));
  return parameters;
}

at::Tensor loss_of(const std::vector<at::Tensor>& parameters) {
  at::Tensor loss = at::sum(parameters[0]);
  for (std::size_t i = 1; i < parameters.size(); ++i)
    loss = at::add(loss, at::sum(at::mul(parameters[i], parameters[i])));
  return loss;
}

/// Two good steps, then a third in whose update rank 1 is killed. Rethrows the exception of the third step, after a
/// check of the engine's later errors.
void train_until_death(std::unique_ptr<comm::Communicator> inner) {
  at::set_num_threads(1);
  const int rank = inner->rank();
  const int world = inner->size();
  const auto rule = [rank, updates = 0](std::int64_t, const comm::Tag& tag) mutable {
    if (tag.what == "updated parameters" && rank == 1 && ++updates == 8) raise(SIGKILL);
    return comm::Fault{};
  };
  const auto parameters = make_parameters();
  auto engine =
      make_engine(parameters, failure_config(1, world), comm::make_fault_communicator(std::move(inner), rule));
  for (int step = 0; step < 2; ++step) {
    engine->backward(loss_of(parameters));
    engine->step();
  }
  engine->backward(loss_of(parameters));
  const std::string cause = comm::outcome_of([&] { engine->step(); });
  const auto ticket = engine->gather(parameters);
  const std::string refusals[] = {
      comm::outcome_of([&] { engine->backward(at::sum(parameters[0])); }), comm::outcome_of([&] { engine->step(); }),
      comm::outcome_of([&] { engine->before_forward(); }), comm::outcome_of([&] { engine->release(ticket, 0); })};
  for (const auto& refusal : refusals) {
    if (!refusal.starts_with("UsageError") || !contains(refusal, "restart from a checkpoint")) {
      throw Error("the engine continued: " + refusal);
    }
  }
  throw Error(cause);
}

// Catches survivors that hang, or continue although some parameters are a step ahead, and errors without the dead
// rank.
TEST(StepFailure, SurvivorsOfADeathInTheUpdateSaySoAndRefuseToGoOn) {
  const std::string name = comm::unique_job_name();
  std::vector<std::unique_ptr<comm::RankProcess>> ranks;
  for (int rank = 0; rank < 3; ++rank) {
    ranks.push_back(std::make_unique<comm::RankProcess>(
        [&, rank] { train_until_death(comm::join_shared_memory(name, rank, 3, seconds(20))); }));
  }
  for (int rank = 0; rank < 3; ++rank) {
    const std::string outcome = ranks[rank]->outcome();
    if (rank == 1) {
      EXPECT_EQ(outcome, "killed");
    } else {
      EXPECT_TRUE(outcome.starts_with("PeerError: the update of step 3 ended in the middle")) << outcome;
      EXPECT_TRUE(contains(outcome, "rank 1")) << outcome;
      EXPECT_TRUE(contains(outcome, "restart from a checkpoint")) << outcome;
    }
  }
}

// Catches a hang, or a shard rewritten while peers still read it, when only one rank has written a page that must be
// evicted.
TEST(StepFailure, DirtyPageThatLeavesOnOneRankOnlyIsANamedError) {
  const auto body = [](comm::Communicator& communicator) {
    const auto parameters = make_parameters();
    auto engine = make_engine(parameters, failure_config(3, communicator.size()),
                              std::shared_ptr<comm::Communicator>(&communicator, [](auto*) {}));
    if (communicator.rank() == 0) {
      c10::AutoGradMode no_grad(false);
      parameters[0].add_(1);
    }
    const std::string outcome = comm::outcome_of([&] {
      const double value = at::sum(parameters[1]).item<double>();
      EXPECT_EQ(value, 4096.0);
      const double first = at::sum(parameters[0]).item<double>();
      EXPECT_EQ(first, 4096.0) << "half of what rank 0 wrote";
      communicator.barrier({"after the pass"});
    });
    if (!outcome.empty()) throw Error(outcome);
  };
  const auto outcomes = comm::run_threads(3, seconds(2), body);
  for (const auto& outcome : outcomes) {
    EXPECT_TRUE(outcome.starts_with("PeerError") || outcome.starts_with("TimeoutError")) << outcome;
    EXPECT_TRUE(contains(outcome, "page 0 (p0)")) << outcome;
  }
}

}  // namespace
}  // namespace zeropage::engine
