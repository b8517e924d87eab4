/// \file
/// A small model that is trained on two ranks, and by plain libtorch in one process on the batches of both.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/optimizer.h>

#include <string>
#include <vector>

#include "zeropage/cpp/test_ranks.h"

namespace zeropage {

/// The same values each time.
inline torch::nn::Sequential make_model() {
  torch::nn::Sequential model(torch::nn::Linear(5, 7), torch::nn::Linear(7, 3));
  c10::AutoGradMode no_grad(false);
  double start = -0.5;
  for (auto& parameter : model->parameters()) {
    parameter.copy_(at::linspace(start, start + 1.0, parameter.numel()).view(parameter.sizes()));
    start += 0.125;
  }
  return model;
}

inline at::Tensor batch_of(int step, int rank) {
  return at::cos(at::arange(10, at::kFloat).view({2, 5}) * (step + 1) + 3 * rank);
}

inline at::Tensor loss_of(torch::nn::Sequential& model, const at::Tensor& batch) {
  return (model->forward(batch) - 0.25).square().mean();
}

inline at::Tensor whole_loss(torch::nn::Sequential& model, int step) {
  return loss_of(model, at::cat({batch_of(step, 0), batch_of(step, 1)}));
}

inline void train_by_libtorch(torch::nn::Sequential model, torch::optim::Optimizer& optimizer, int from, int to) {
  for (int step = from; step < to; ++step) {
    optimizer.zero_grad();
    whole_loss(model, step).backward();
    optimizer.step();
  }
}

inline void train(Engine& engine, torch::nn::Sequential& model, int from, int to, int rank) {
  for (int step = from; step < to; ++step) {
    engine.backward(loss_of(model, batch_of(step, rank)));
    engine.step();
  }
}

inline void expect_equal(const std::vector<at::Tensor>& ours, const std::vector<at::Tensor>& expected) {
  ASSERT_EQ(ours.size(), expected.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    EXPECT_TRUE(at::allclose(ours[i].detach(), expected[i].detach(), 1e-4, 1e-6))
        << "parameter " << i << ": " << ours[i] << "\nplain libtorch: " << expected[i];
  }
}

}  // namespace zeropage
