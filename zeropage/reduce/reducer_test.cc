// Gradients of graphs that differ per rank, in many backwards, against a plain sum.
#include "zeropage/reduce/reducer.h"

#include <ATen/ops/add.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <random>

#include "zeropage/comm/testing/fault_communicator.h"
#include "zeropage/comm/testing/test_ranks.h"
#include "zeropage/paging/pager.h"
#include "zeropage/reduce/test_squares.h"

namespace zeropage::reduce {
namespace {

const std::vector<std::int64_t> kNumels = {5, 64, 3, 100, 1, 32, 17, 40};
const int kParameters = static_cast<int>(kNumels.size());
constexpr int kSteps = 12;
constexpr int kBackwards = 3;

std::shared_ptr<const layout::Layout> make_layout(int world) {
  std::vector<layout::ParameterSpec> specs(kNumels.size());
  for (int i = 0; i < kParameters; ++i) {
    specs[i].name.append("p").append(std::to_string(i));
    specs[i].numel = kNumels[i];
  }
  return std::make_shared<const layout::Layout>(
      specs, layout::LayoutOptions{
                 .world_size = world, .page_numel = 64, .parameter_alignment_numel = 8, .shard_alignment_numel = 16});
}

/// The gradient of each parameter in `backward` of `step` on `rank`, 0 if its graph does not reach it. Small whole
/// numbers, so that every order of summation gives the same. Some steps reach nothing, or a few parameters only.
std::vector<int> graph_of(int rank, int step, int backward) {
  std::mt19937 random(10000 * rank + 100 * step + backward);
  std::vector<int> gradients(kNumels.size());
  const unsigned reach = random() % 4;
  for (auto& gradient : gradients) {
    if (random() % 4 < reach) gradient = 1 + static_cast<int>(random() % 9);
  }
  if (step >= 4 && step < 10) gradients[3] = gradients[5] = 0;  // long enough to leave the common order
  return gradients;
}

void run_graph(const std::vector<at::Tensor>& parameters, const std::vector<int>& gradients) {
  at::Tensor loss = at::zeros({});
  for (int i = 0; i < kParameters; ++i) {
    if (gradients[i] != 0) loss = at::add(loss, at::sum(parameters[i]), gradients[i]);
  }
  if (loss.requires_grad()) torch::autograd::backward({loss});
}

/// Checks this rank's part of every page's sum after a step in which each backward ran `segments` graphs.
void expect_sums(const Reducer& reducer, const layout::Layout& layout, const ReducePolicy& policy, int rank, int step,
                 int world, int segments) {
  std::vector<int> sums(kNumels.size());
  std::vector<bool> received(kNumels.size());
  for (int r = 0; r < world; ++r) {
    for (int backward = 0; backward < kBackwards * segments; ++backward) {
      const auto graph = graph_of(r, step, backward);
      for (int i = 0; i < kParameters; ++i) {
        sums[i] += graph[i];
        if (r == rank && graph[i] != 0) received[i] = true;
      }
    }
  }
  EXPECT_EQ(reducer.received_since_reset(), received);
  for (const auto& page : layout.pages()) {
    const std::int64_t begin = policy.whole_result ? 0 : rank * page.shard_numel;
    const std::int64_t end = policy.whole_result ? page.padded_numel : begin + page.shard_numel;
    const auto gradient = reducer.gradient(page.index);
    for (const auto& segment : layout.segments(page.index, begin, end)) {
      if (reducer.keeps(page.index)) {
        const at::Tensor& kept = reducer.kept(segment.parameter);
        EXPECT_EQ(kept.defined(), received[segment.parameter]);
        if (kept.defined()) {
          EXPECT_TRUE(at::eq(kept, sums[segment.parameter]).all().item<bool>());
        }
        continue;
      }
      if (gradient.data == nullptr) {
        EXPECT_EQ(sums[segment.parameter], 0);
        continue;
      }
      const auto values = memory::flat_view(static_cast<std::byte*>(gradient.data), end - begin,
                                            scalar_type_of(gradient.dtype), c10::Device(c10::kCPU))
                              .narrow(0, segment.page_offset - begin, segment.numel);
      ASSERT_TRUE(at::eq(values, sums[segment.parameter]).all().item<bool>())
          << "parameter " << segment.parameter << " step " << step;
    }
  }
}

struct Case {
  const char* name;
  ReducePolicy policy;
  bool two_sided;
  int segments;                     ///< graphs per backward: 2 as with a weight in two reentrant checkpoints
  int steps_from = kBackwards - 1;  ///< backwards from this one on take themselves for the last before a step
};

class ReducerOnRanks : public testing::TestWithParam<std::tuple<int, Case>> {};

// Catches ranks that start different collectives, gradients that are lost, counted twice or left over from an earlier
// step, and frames that are reused while they are sent.
TEST_P(ReducerOnRanks, SumsWhatEachRankReached) {
  const auto& [world, what] = GetParam();
  auto communicators = comm::make_thread_communicators(world, std::chrono::seconds(20));
  for (int rank = 0; rank < world; ++rank) {
    communicators[rank] = comm::make_fault_communicator(
        std::move(communicators[rank]), comm::random_delays(rank, std::chrono::microseconds(100)), what.two_sided);
  }
  const auto body = [&, what = what](comm::Communicator& communicator) {
    const int rank = communicator.rank();
    auto layout = make_layout(communicator.size());
    std::vector<at::Tensor> parameters;
    for (std::int64_t numel : kNumels) parameters.push_back(at::zeros({numel}).set_requires_grad(true));
    ReducePolicy policy = what.policy;
    policy.keep = policy.keep && communicator.size() == 1;
    const auto ledger = std::make_shared<Ledger>();
    Reducer reducer(layout, parameters, std::shared_ptr<comm::Communicator>(&communicator, [](auto*) {}),
                    c10::Device(c10::kCPU), ledger, policy);
    for (int step = 0; step < kSteps; ++step) {
      for (int backward = 0; backward < kBackwards; ++backward) {
        reducer.begin_backward(backward >= what.steps_from);
        for (int segment = 0; segment < what.segments; ++segment) {
          run_graph(parameters, graph_of(rank, step, backward * what.segments + segment));
        }
        reducer.end_backward();
      }
      reducer.finish();
      expect_sums(reducer, *layout, what.policy, rank, step, communicator.size(), what.segments);
      expect_squares(reducer, *layout, what.policy, rank);
      for (const auto& parameter : parameters) EXPECT_FALSE(parameter.grad().defined());
      reducer.reset();
      if (policy.keep) {
        EXPECT_EQ(ledger->current_bytes(MemoryKind::kGradients), 0);
      }
    }
    communicator.barrier({"done"});
  };
  for (const auto& outcome : comm::run_threads(std::move(communicators), body)) EXPECT_EQ(outcome, "");
}

ReducePolicy policy_of(bool sharded, bool whole_result, bool reduce_scatter) {
  ReducePolicy policy;
  policy.sharded = sharded;
  policy.whole_result = whole_result;
  policy.reduce_scatter = reduce_scatter;
  return policy;
}

// Catches a kept gradient whose elements are in another order than the parameter's, or of another type than the update
// reads; and a sum that loses what was kept when more is added to it after it was complete.
TEST(KeptGradients, AreInTheLayoutOfTheParameter) {
  const auto communicator =
      std::shared_ptr<comm::Communicator>(std::move(comm::make_thread_communicators(1, std::chrono::seconds(20))[0]));
  std::vector<layout::ParameterSpec> specs(1);
  specs[0] = {.name = "p", .numel = 6, .dtype = DType::kBFloat16, .element_bytes = 2};
  const auto layout = std::make_shared<const layout::Layout>(specs, layout::LayoutOptions{});
  const auto parameter = at::zeros({2, 3}, at::kBFloat16).t().set_requires_grad(true);
  ReducePolicy policy = policy_of(true, false, true);
  policy.keep = true;
  policy.frame_dtype = DType::kBFloat16;
  Reducer reducer(layout, {parameter}, communicator, c10::Device(c10::kCPU), std::make_shared<Ledger>(), policy);
  const auto factors = at::arange(1, 7).view({3, 2}).to(at::kBFloat16);
  const auto run = [&] {
    reducer.begin_backward(true);
    torch::autograd::backward({at::sum(at::mul(parameter, factors))});
    reducer.end_backward();
  };
  run();
  ASSERT_TRUE(reducer.keeps(0));
  EXPECT_EQ(reducer.gradient(0).dtype, DType::kBFloat16);
  EXPECT_EQ(reducer.kept(0).scalar_type(), at::kBFloat16);
  EXPECT_EQ(reducer.kept(0).strides(), parameter.strides());
  EXPECT_TRUE(reducer.kept(0).equal(factors));
  run();
  EXPECT_FALSE(reducer.keeps(0));
  const auto sum = reducer.gradient(0);
  ASSERT_EQ(sum.dtype, DType::kFloat32);
  const auto values = memory::view_of(sum.data, {3, 2}, parameter.strides(), at::kFloat, c10::Device(c10::kCPU));
  EXPECT_TRUE(values.equal(at::mul(factors, 2).to(at::kFloat)));
  EXPECT_EQ(reducer.squares(0).at(0), 4.0 * (1 + 4 + 9 + 16 + 25 + 36));
  reducer.reset();
  run();
  EXPECT_TRUE(reducer.keeps(0)) << "the next sum is kept again";
}

// Catches a page that is in the order of reductions twice, and ranks whose orders differ in length: on rank 0 a page
// becomes complete again in the first backward, by a second gradient, for which all ranks take frames of fp32.
TEST(DeferredGradients, DoNotChangeTheOrderOfReductions) {
  const auto body = [](comm::Communicator& communicator) {
    std::vector<layout::ParameterSpec> specs(2);
    for (auto& spec : specs) spec = {.name = "p", .numel = 64, .dtype = DType::kBFloat16, .element_bytes = 2};
    const auto layout = std::make_shared<const layout::Layout>(
        specs, layout::LayoutOptions{.world_size = communicator.size(), .page_numel = 64});
    const std::vector<at::Tensor> parameters = {at::zeros({64}, at::kBFloat16).set_requires_grad(true),
                                                at::zeros({64}, at::kBFloat16).set_requires_grad(true)};
    ReducePolicy policy = policy_of(false, false, true);
    policy.accumulation_dtype = policy.frame_dtype = DType::kBFloat16;
    policy.adding = ReduceTypes{};
    Reducer reducer(layout, parameters, std::shared_ptr<comm::Communicator>(&communicator, [](auto*) {}),
                    c10::Device(c10::kCPU), std::make_shared<Ledger>(), policy);
    for (int step = 0; step < 2; ++step) {
      reducer.begin_backward(true);
      const int graphs = communicator.rank() == 0 ? 2 : 1;
      for (int i = 0; i < graphs; ++i) torch::autograd::backward({at::sum(parameters[1])});
      reducer.end_backward();
      reducer.finish();
      const auto gradient = reducer.gradient(1);
      ASSERT_NE(gradient.data, nullptr);
      EXPECT_EQ(gradient.dtype, DType::kFloat32) << "frames of fp32 hold both gradients";
      if (communicator.rank() == 0) {
        EXPECT_EQ(*static_cast<const float*>(gradient.data), communicator.size() + 1.0F) << "step " << step;
      }
      reducer.reset();
    }
    communicator.barrier({"done"});
  };
  for (const auto& outcome : comm::run_threads(2, std::chrono::seconds(20), body)) EXPECT_EQ(outcome, "");
}

ReducePolicy without_overlap(ReducePolicy policy) {
  policy.overlap = false;
  return policy;
}

/// Whole pages of 32 bits that are sent in 16.
ReducePolicy sent_in_bf16(ReducePolicy policy) {
  policy.frame_dtype = DType::kBFloat16;
  return policy;
}

ReducePolicy keeping(ReducePolicy policy) {
  policy.keep = true;
  return policy;
}

std::vector<Case> cases() {
  const auto stage0 = policy_of(false, true, true);
  const auto stage1 = policy_of(false, false, true);
  const auto stage2 = policy_of(true, false, true);
  return {{"stage0", stage0, false, 1},
          {"stage0_late", stage0, false, 2},
          {"stage0_every_backward", stage0, false, 1, 0},
          {"stage0_no_overlap", without_overlap(stage0), false, 1},
          {"stage0_bf16", sent_in_bf16(stage0), false, 2},
          {"stage1", stage1, false, 1},
          {"stage1_late", stage1, false, 2},
          {"stage1_every_backward", stage1, false, 1, 0},
          {"stage1_never_told", stage1, false, 2, kBackwards},
          {"stage1_all_reduce", policy_of(false, false, false), false, 2},
          {"stage1_bf16", sent_in_bf16(stage1), false, 2},
          {"stage1_two_sided", stage1, true, 2},
          {"stage2", stage2, false, 1},
          {"stage2_late", stage2, false, 2},
          {"stage2_kept", keeping(stage2), false, 1},
          {"stage2_kept_late", keeping(stage2), false, 2},
          {"stage2_no_overlap", without_overlap(stage2), false, 2},
          {"stage2_all_reduce", policy_of(true, false, false), false, 1},
          {"stage2_two_sided", stage2, true, 2}};
}

INSTANTIATE_TEST_SUITE_P(Ranks, ReducerOnRanks, testing::Combine(testing::Values(1, 2, 4), testing::ValuesIn(cases())),
                         [](const auto& info) {
                           return std::string(std::get<1>(info.param).name) + "_" +
                                  std::to_string(std::get<0>(info.param));
                         });

}  // namespace
}  // namespace zeropage::reduce
