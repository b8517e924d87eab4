#include <torch/nn/modules/linear.h>
#include <zeropage/zeropage.h>

#include <cstdio>

int main() try {
  torch::manual_seed(1);
  torch::nn::Linear model(8, 1);
  auto engine = zeropage::initialize(*model, zeropage::Config::from_file("ds_config.json"));

  for (int step = 0; step < 20; ++step) {
    const at::Tensor data = at::rand({engine.train_micro_batch_size_per_gpu(), 8});
    const at::Tensor target = data.sum(1, /*keepdim=*/true);
    const at::Tensor loss = at::mse_loss(model->forward(data), target);
    engine.backward(loss);
    engine.step();
    if (engine.global_rank() == 0) std::printf("step %2d  loss %.4f\n", step + 1, loss.item<double>());
  }
  engine.print_memory_table();
} catch (const zeropage::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return zeropage::exit_code(error);
}
