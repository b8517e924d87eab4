// Test of the training loop of docs/from-libtorch.md. The page shows the code between the two lines of dashes.
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/schedulers/step_lr.h>
#include <torch/serialize.h>

#include <filesystem>
#include <memory>

#include "zeropage/cpp/test_training.h"

namespace zeropage {
namespace {

struct Batch {
  at::Tensor data, target;
};

constexpr const char* kConfig = R"({"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1,
  "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}})";

double train_with_zeropage(torch::nn::Sequential model, const std::vector<Batch>& batches, zeropage::Options options,
                           const std::string& folder) {
  const auto config = zeropage::Config::from_json(kConfig);
  double validation = 0.0;
  // ----------
  auto optimizer = std::make_shared<torch::optim::RMSprop>(model->parameters(), torch::optim::RMSpropOptions(0.01));
  torch::optim::StepLR schedule(*optimizer, /*step_size=*/1, /*gamma=*/0.5);
  options.optimizer = optimizer;
  auto engine = zeropage::initialize(*model, config, options);
  engine.load_checkpoint(folder);

  for (int epoch = 0; epoch < 2; ++epoch) {
    model->train();
    for (const auto& batch : batches) {
      const at::Tensor loss = at::mse_loss(model->forward(batch.data), batch.target);
      engine.backward(loss);
      torch::nn::utils::clip_grad_norm_(model->parameters(), 1.0);
      engine.step();
    }
    schedule.step();

    model->eval();
    const torch::NoGradGuard no_grad;
    const at::Tensor loss = at::mse_loss(model->forward(batches[0].data), batches[0].target);
    validation = engine.mean_over_ranks(loss.item<double>());
    if (engine.global_rank() == 0) std::printf("epoch %d  validation %.4f\n", epoch, validation);
    engine.save_checkpoint(folder);
  }
  engine.release();
  if (options.communicator->rank() == 0) torch::save(model, folder + "/model.pt");
  // ----------
  return validation;
}

double train_with_libtorch(torch::nn::Sequential model, const std::vector<Batch>& batches) {
  torch::optim::RMSprop optimizer(model->parameters(), torch::optim::RMSpropOptions(0.01));
  torch::optim::StepLR schedule(optimizer, /*step_size=*/1, /*gamma=*/0.5);
  for (int epoch = 0; epoch < 2; ++epoch) {
    for (const auto& batch : batches) {
      optimizer.zero_grad();
      at::mse_loss(model->forward(batch.data), batch.target).backward();
      torch::nn::utils::clip_grad_norm_(model->parameters(), 1.0);
      optimizer.step();
    }
    schedule.step();
  }
  return at::mse_loss(model->forward(batches[0].data), batches[0].target).item<double>();
}

// Catches a loop in the guide that trains differently from the one that it replaces.
TEST(FromLibtorch, TheGuidesLoopTrainsAsPlainLibtorch) {
  std::vector<Batch> whole;
  for (int step = 0; step < 3; ++step) {
    const at::Tensor data = at::cat({batch_of(step, 0), batch_of(step, 1)});
    whole.push_back({data, data.narrow(1, 0, 3) * 2});
  }
  auto plain = make_model();
  const double expected = train_with_libtorch(plain, whole);

  const std::string folder = testing::TempDir() + "/from_libtorch";
  std::filesystem::remove_all(folder);
  on_two_ranks([&](int rank, const Options& options) {
    std::vector<Batch> own;
    for (const auto& batch : whole)
      own.push_back({batch.data.narrow(0, 2 * rank, 2), batch.target.narrow(0, 2 * rank, 2)});
    auto model = make_model();
    EXPECT_NEAR(train_with_zeropage(model, own, options, folder), expected, 1e-4);
    expect_equal(model->parameters(), plain->parameters());
  });
  auto saved = make_model();
  torch::load(saved, folder + "/model.pt");
  expect_equal(saved->parameters(), plain->parameters());
}

}  // namespace
}  // namespace zeropage
