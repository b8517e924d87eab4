#include "zeropage/cpp/model_tensors.h"

#include <torch/nn/module.h>

namespace zeropage::cpp {
namespace {

ModelTensors::Named named_pairs(const torch::OrderedDict<std::string, at::Tensor>& tensors) {
  ModelTensors::Named named;
  for (const auto& item : tensors) named.emplace_back(item.key(), item.value());
  return named;
}

}  // namespace

ModelTensors::ModelTensors(torch::nn::Module& module) : module_(module.weak_from_this().lock()) {
  if (module_) return;
  parameters_ = named_pairs(module.named_parameters());
  buffers_ = named_pairs(module.named_buffers());
}

ModelTensors::Named ModelTensors::parameters() const {
  return module_ ? named_pairs(module_->named_parameters()) : parameters_;
}

void ModelTensors::add(std::string name, const at::Tensor& parameter) {
  if (!module_) parameters_.emplace_back(std::move(name), parameter);
}

ModelTensors::Named ModelTensors::buffers() const { return module_ ? named_pairs(module_->named_buffers()) : buffers_; }

}  // namespace zeropage::cpp
