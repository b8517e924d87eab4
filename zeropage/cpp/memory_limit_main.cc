// A rank that builds and trains a model whose parameters exceed the memory the process may have: `memory_limit init`.
// Without `init` it builds the model in the plain way, and fails. tests/test_cpp.py runs both.
#include <sys/resource.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/linear.h>

#include <cstdio>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>

#include "zeropage/zeropage.h"

namespace {

namespace nn = torch::nn;

constexpr std::int64_t kWidth = 1024;
constexpr int kLayers = 64;  // 4 MiB each, 256 MiB in all
constexpr std::int64_t kLimitBytes = std::int64_t{240}
                                     << 20;  // in addition to the memory of torch and of a first engine

zeropage::Config config() {
  return zeropage::Config::from_json(R"({
    "train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": true}, "optimizer": {"type": "AdamW", "params": {"lr": 0.01}},
    "zero_optimization": {"stage": 3, "stage3_max_live_parameters": 4194304, "stage3_param_persistence_threshold": 0},
    "zeropage": {"page_numel": 1048576, "communicator": "mpi"}})");
}

/// Frozen layers between a trained input and a trained output.
struct MostlyFrozenImpl : nn::Module {
  explicit MostlyFrozenImpl(int count) {
    for (int i = 0; i < count; ++i) layers->push_back(nn::Linear(nn::LinearOptions(kWidth, kWidth).bias(false)));
    for (auto& parameter : layers->parameters()) parameter.set_requires_grad(false);
    register_module("layers", layers);
    shift = register_parameter("shift", at::zeros({kWidth}));
    register_module("head", head);
  }
  at::Tensor forward(at::Tensor x) {
    for (const auto& layer : *layers) x = layer->as<nn::LinearImpl>()->forward(x + shift);
    return head->forward(x).to(at::kFloat).square().mean();
  }
  nn::ModuleList layers;
  at::Tensor shift;
  nn::Linear head{kWidth, 4};
};
TORCH_MODULE(MostlyFrozen);

MostlyFrozen build(int layers, bool in_scope) {
  std::optional<zeropage::Init> scope;
  if (in_scope) scope.emplace(config());
  return MostlyFrozen(layers);
}

/// The change of the loss by one step.
double train(MostlyFrozen& model) {
  auto engine = zeropage::initialize(*model, config());
  const at::Tensor x = at::ones({1, kWidth}, at::kBFloat16);
  const at::Tensor before = model->forward(x);
  engine.backward(before);
  engine.step();
  if (!engine.was_step_applied()) throw std::runtime_error("the step was skipped");
  return before.item<double>() - model->forward(x).item<double>();
}

void limit_memory() {
  std::ifstream status("/proc/self/status");
  std::string word;
  rlim_t mapped_kib = 0;
  while (status >> word) {
    if (word == "VmSize:") status >> mapped_kib;
  }
  const rlim_t limit = mapped_kib * 1024 + kLimitBytes;
  const rlimit both{limit, limit};
  if (::setrlimit(RLIMIT_AS, &both) != 0) throw std::runtime_error("setrlimit failed");
}

}  // namespace

int main(int argc, char** argv) try {
  const bool in_scope = argc > 1 && std::string(argv[1]) == "init";
  at::set_num_threads(1);
  {
    auto small = build(1, in_scope);  // starts torch's and MPI's threads
    train(small);
  }
  limit_memory();
  auto model = build(kLayers, in_scope);
  std::int64_t parameter_bytes = 0;
  for (const auto& parameter : model->parameters()) parameter_bytes += static_cast<std::int64_t>(parameter.nbytes());
  const double change = train(model);
  std::printf("parameters %.0f MiB, limit %.0f MiB, loss changed by %g\n", parameter_bytes / 1048576.0,
              kLimitBytes / 1048576.0, change);
  return change == 0.0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return zeropage::exit_code(error);
}
