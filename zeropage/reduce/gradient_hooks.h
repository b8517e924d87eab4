/// \file
/// Tells the reducer when autograd has finished a parameter's gradient: a post hook on the parameter's AccumulateGrad node,
/// as c10d's Reducer uses, which runs after the gradient stands in `p.grad`, on whatever thread autograd uses.
#pragma once

#include "zeropage/paging/torch_config.h"

#include <functional>
#include <memory>
#include <vector>

namespace zeropage::reduce {

/// Hooks on a set of parameters; removed with the object.
class GradientHooks {
 public:
  /// `on_gradient(i)` is called with the index into `parameters` whenever parameter i's gradient was accumulated. An
  /// exception thrown by it ends the backward and reaches its caller.
  GradientHooks(const std::vector<at::Tensor>& parameters, std::function<void(int)> on_gradient);
  ~GradientHooks();
  GradientHooks(const GradientHooks&) = delete;
  GradientHooks& operator=(const GradientHooks&) = delete;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace zeropage::reduce
