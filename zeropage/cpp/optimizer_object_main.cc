// Trains a small model with an optimizer object of libtorch: `optimizer_object KIND STAGE FOLDER STEPS`. It resumes
// from the newest checkpoint of FOLDER, trains up to step STEPS, and saves there. tests/test_cpp_checkpoints.py has the
// same program in Python.
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>

#include "zeropage/cpp/test_training.h"

namespace {

std::shared_ptr<torch::optim::Optimizer> optimizer_of(const std::string& kind, std::vector<at::Tensor> parameters) {
  using namespace torch::optim;
  if (kind == "Adam") return std::make_shared<Adam>(std::move(parameters), AdamOptions(0.01).weight_decay(0.1));
  if (kind == "Amsgrad") return std::make_shared<Adam>(std::move(parameters), AdamOptions(0.01).amsgrad(true));
  if (kind == "AdamW") return std::make_shared<AdamW>(std::move(parameters), AdamWOptions(0.01).weight_decay(0.1));
  if (kind == "Adagrad")
    return std::make_shared<Adagrad>(std::move(parameters), AdagradOptions(0.1).initial_accumulator_value(0.5));
  if (kind == "RMSprop") return std::make_shared<RMSprop>(std::move(parameters), RMSpropOptions(0.01).momentum(0.5));
  if (kind == "SGD") return std::make_shared<SGD>(std::move(parameters), SGDOptions(0.25).momentum(0.5));
  throw std::invalid_argument("no such optimizer: " + kind);
}

/// The section for Muon, which is not an object of the program: the configuration names it.
const char* section_of(const std::string& kind) {
  return kind == "Muon"
             ? R"(, "optimizer": {"type": "Muon", "params": {"lr": 0.02, "adam_lr": 0.01, "weight_decay": 0.1,
    "ns_method": "standard", "ns_dtype": "fp32", "eps": 1e-4}})"
             : "";
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 5) throw std::invalid_argument("optimizer_object KIND STAGE FOLDER STEPS");
    const std::string folder = argv[3];
    auto model = zeropage::make_model();
    zeropage::Options options;
    const std::string kind = argv[1];
    if (kind != "Muon") options.optimizer = optimizer_of(kind, model->parameters());
    auto engine = zeropage::initialize(
        *model,
        zeropage::Config::from_json(R"({"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": )" +
                                    std::string(argv[2]) + R"(, "stage3_param_persistence_threshold": 0})" +
                                    section_of(kind) + "}"),
        options);
    if (std::filesystem::exists(folder)) engine.load_checkpoint(folder);
    while (engine.global_steps() < std::stoll(argv[4])) {
      engine.backward(zeropage::whole_loss(model, static_cast<int>(engine.global_steps())));
      engine.step();
    }
    engine.save_checkpoint(folder);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return zeropage::exit_code(error);
  }
}
