/// \file
/// The named tensors of a program's module, for saving and loading. A module that a shared_ptr owns (torch's
/// ModuleHolder, as most do) is also owned here, and its current tensors are used. A module on the stack may be
/// destroyed before the engine, so the tensors that it had in `initialize` are kept instead.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace torch::nn {
class Module;
}

namespace zeropage::cpp {

class ModelTensors {
 public:
  using Named = std::vector<std::pair<std::string, at::Tensor>>;

  ModelTensors() = default;
  explicit ModelTensors(torch::nn::Module& module);

  Named parameters() const;  ///< all names, so that tied ones occur more than once
  Named buffers() const;
  torch::nn::Module* module() const { return module_.get(); }  ///< null: nobody holds it
  void add(std::string name, const at::Tensor& parameter);     ///< for a module that no shared_ptr owns

 private:
  std::shared_ptr<torch::nn::Module> module_;  // null: nobody holds it
  Named parameters_;                           // then
  Named buffers_;
};

}  // namespace zeropage::cpp
