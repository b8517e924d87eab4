// The squares for the global norm are those of the stored sum, for every last writer and every division into pieces.
#include <ATen/Parallel.h>
#include <ATen/ops/add.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "zeropage/comm/c10d/c10d_communicator.h"
#include "zeropage/comm/testing/test_ranks.h"
#include "zeropage/paging/pager.h"
#include "zeropage/reduce/test_squares.h"

// torch's headers last, because they define macros.
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

namespace zeropage::reduce {
namespace {

/// Several blocks of a sum of squares, divided anywhere by shards; and small ones that transports send in another way.
const std::vector<std::vector<std::int64_t>> kModels = {{70000, 3, 0, 200001, 4097}, {5, 300, 17}};

enum class Result { kWhole, kShardOfWhole, kShard };  ///< stage 0, stage 1, stages 2 and 3

struct Kind {
  Result result;
  bool reduce_scatter = true;
  DType parameter_dtype = DType::kFloat32;
  DType accumulation_dtype = DType::kFloat32;
  DType frame_dtype = DType::kFloat32;

  std::string name() const {
    return fmt::format("{}, {}, {} parameters accumulated in {} that are sent in {}",
                       result == Result::kWhole          ? "whole sum"
                       : result == Result::kShardOfWhole ? "shard of whole pages"
                                                         : "shard",
                       reduce_scatter ? "scattered" : "all-reduced", dtype_name(parameter_dtype),
                       dtype_name(accumulation_dtype), dtype_name(frame_dtype));
  }

  ReducePolicy policy() const {
    ReducePolicy policy;
    policy.sharded = result == Result::kShard;
    policy.whole_result = result == Result::kWhole;
    policy.reduce_scatter = reduce_scatter;
    policy.accumulation_dtype = accumulation_dtype;
    policy.frame_dtype = frame_dtype;
    return policy;
  }
};

std::vector<Kind> kinds() {
  const auto fp32 = DType::kFloat32;
  const auto bf16 = DType::kBFloat16;
  const auto fp16 = DType::kFloat16;
  std::vector<Kind> kinds;
  for (const auto result : {Result::kWhole, Result::kShardOfWhole, Result::kShard}) {
    kinds.push_back({result});
    kinds.push_back({result, false});
    kinds.push_back({result, true, fp32, fp32, bf16});
    kinds.push_back({result, true, bf16, bf16, bf16});
    kinds.push_back({result, false, fp16, fp16, fp16});
    kinds.push_back({result, true, fp16, fp32, fp16});
    if (result != Result::kShard) kinds.push_back({result, true, bf16, bf16, fp32});
  }
  return kinds;
}

std::shared_ptr<const layout::Layout> squares_layout(const std::vector<std::int64_t>& numels, const Kind& kind,
                                                     int world) {
  std::vector<layout::ParameterSpec> specs(numels.size());
  for (std::size_t i = 0; i < numels.size(); ++i) {
    specs[i].name = fmt::format("p{}", i);
    specs[i].numel = numels[i];
    specs[i].dtype = kind.parameter_dtype;
    specs[i].element_bytes = element_bytes(kind.parameter_dtype);
  }
  return std::make_shared<const layout::Layout>(specs, layout::LayoutOptions{.world_size = world});
}

std::vector<at::Tensor> make_parameters(const std::vector<std::int64_t>& numels, const Kind& kind) {
  std::vector<at::Tensor> parameters;
  for (const auto numel : numels) {
    parameters.push_back(at::zeros({numel}, scalar_type_of(kind.parameter_dtype)).set_requires_grad(true));
  }
  return parameters;
}

/// A graph that reaches every parameter, or those of odd index only, with gradients whose sum shows its order.
void run_squares_graph(const std::vector<at::Tensor>& parameters, int rank, bool all) {
  at::Tensor loss = at::zeros({});
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (!all && i % 2 == 0) continue;
    const auto factors = at::arange(parameters[i].numel(), at::kFloat).mul_(0.37 + rank).sin_();
    loss = at::add(loss, at::sum(at::mul(parameters[i], factors.to(parameters[i].scalar_type()))));
  }
  torch::autograd::backward({loss});
}

/// Two backwards with one graph each; the second is reduced. Then two backwards with two graphs each, as with a weight
/// in two reentrant checkpoints; both are reduced. Gradients of all graphs but the first are late for whole pages.
void check_squares(comm::Communicator& communicator, const std::vector<std::int64_t>& numels, const Kind& kind) {
  SCOPED_TRACE(fmt::format("{}, rank {} of {}", kind.name(), communicator.rank(), communicator.size()));
  auto layout = squares_layout(numels, kind, communicator.size());
  const auto parameters = make_parameters(numels, kind);
  const ReducePolicy policy = kind.policy();
  Reducer reducer(layout, parameters, std::shared_ptr<comm::Communicator>(&communicator, [](auto*) {}),
                  c10::Device(c10::kCPU), std::make_shared<Ledger>(), policy);
  for (const bool late : {false, true}) {
    if (late) reducer.listen([](int) {}, [](int) {});  // a single rank's sums are only announced with listeners
    for (int backward = 0; backward < 2; ++backward) {
      reducer.begin_backward(/*boundary=*/late || backward == 1);
      run_squares_graph(parameters, communicator.rank(), true);
      if (late) run_squares_graph(parameters, communicator.rank(), communicator.rank() == 0);
      reducer.end_backward();
    }
    reducer.finish();
    expect_squares(reducer, *layout, policy, communicator.rank());
    reducer.reset();
  }
}

void check_all(comm::Communicator& communicator) {
  at::set_num_threads(1);  // ranks are threads already; more threads would only spin
  for (const auto& numels : kModels) {
    for (const Kind& kind : kinds()) check_squares(communicator, numels, kind);
  }
  communicator.barrier({"done"});
}

/// Two backwards that are reduced: the first one's sum is squared by operators before it is copied to its shard, to
/// which the second's is added.
void check_squares_before_copy(comm::Communicator& communicator, const Kind& kind) {
  at::set_num_threads(1);
  const auto& numels = kModels[0];
  auto layout = squares_layout(numels, kind, communicator.size());
  const auto parameters = make_parameters(numels, kind);
  ReducePolicy policy = kind.policy();
  policy.squares_before_copy = true;
  policy.offloaded.assign(layout->pages().size(), true);
  Reducer reducer(layout, parameters, std::shared_ptr<comm::Communicator>(&communicator, [](auto*) {}),
                  c10::Device(c10::kCPU), std::make_shared<Ledger>(), policy);
  for (int backward = 0; backward < 2; ++backward) {
    reducer.begin_backward(/*boundary=*/true);
    run_squares_graph(parameters, communicator.rank(), true);
    reducer.end_backward();
    expect_squares(reducer, *layout, policy, communicator.rank(), /*relative_tolerance=*/backward == 0 ? 1e-13 : 0.0);
  }
  communicator.barrier({"done"});
}

class SquaresOnRanks : public testing::TestWithParam<int> {};

// Catches a sum that is read once more for its squares, squares that depend on the pieces in which a transport writes,
// or miss what lies between two shards, and those of a sum that was increased later.
TEST_P(SquaresOnRanks, AreThoseOfTheStoredSum) {
  for (const auto& outcome : comm::run_threads(GetParam(), comm::kRankTimeout, check_all)) EXPECT_EQ(outcome, "");
}

/// A communicator of one of the threads that share `store`.
std::unique_ptr<comm::Communicator> over_gloo(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size) {
  const auto make_group = [&](const char* name) {
    const auto own = c10::make_intrusive<c10d::PrefixStore>(name, store);
    auto options = c10d::ProcessGroupGloo::Options::create(comm::kRankTimeout);
    options->devices = {c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1")};
    auto group = c10::make_intrusive<c10d::ProcessGroup>(own, rank, size);
    group->setBackend(c10::kCPU, c10d::ProcessGroup::BackendType::GLOO,
                      c10::make_intrusive<c10d::ProcessGroupGloo>(own, rank, size, options));
    group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
    return group;
  };
  return comm::make_c10d_communicator(make_group("data"), make_group("control"), c10::Device(c10::kCPU),
                                      /*deterministic_reduction=*/true, comm::kRankTimeout);
}

// Catches the same if sums are computed from messages, or by gloo.
TEST_P(SquaresOnRanks, AreThoseOfTheStoredSumOverGloo) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  const auto outcomes = comm::run_threads(GetParam(), comm::kRankTimeout, [&](comm::Communicator& threads) {
    check_all(*over_gloo(store, threads.rank(), threads.size()));
  });
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome, "");
}

// Catches squares of other elements than a shard's, of a sum that is not rounded as it is stored, and those of a first
// sum that stay when something is added to it. Within one memory, like a device with its own operators.
TEST(SquaresBeforeCopy, AreThoseOfTheStoredSum) {
  for (const Kind& kind : {Kind{Result::kShard, false},
                           Kind{Result::kShard, true, DType::kBFloat16, DType::kBFloat16, DType::kBFloat16}}) {
    const auto body = [&](comm::Communicator& communicator) { check_squares_before_copy(communicator, kind); };
    for (const auto& outcome : comm::run_threads(3, comm::kRankTimeout, body)) EXPECT_EQ(outcome, "");
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, SquaresOnRanks, testing::Values(1, 2, 3, 4));

}  // namespace
}  // namespace zeropage::reduce
