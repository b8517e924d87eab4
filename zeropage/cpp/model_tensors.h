/// \file
/// The named tensors of a program's module, for saving and loading. A module that is held by a shared_ptr (torch's
/// ModuleHolder, as most are) is held here as well, and asked each time. One that is not, as on the stack, may end
/// before the engine: of that the tensors are kept that it had in `initialize`.
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
  void add(std::string name, const at::Tensor& parameter);     ///< to those of a module that nobody holds

 private:
  std::shared_ptr<torch::nn::Module> module_;  // null: nobody holds it
  Named parameters_;                           // then
  Named buffers_;
};

}  // namespace zeropage::cpp
