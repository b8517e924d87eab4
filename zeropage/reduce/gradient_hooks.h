/// \file
/// Tells the reducer when autograd has finished a parameter's gradient: a post hook on the parameter's AccumulateGrad
/// node, as c10d's Reducer uses, which runs after the gradient stands in `p.grad`, on whatever thread autograd uses.
///
/// A parameter holds its node weakly, and gets another one after `p.data = ...`, `p.set_(...)`, `requires_grad_(True)`
/// and the like: `install` before each forward and backward, and after each step. A node also remembers the stream it
/// was made on: `remove` lets go of those that no graph holds.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <functional>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

namespace zeropage::reduce {

/// Hooks on a set of parameters; removed with the object.
class GradientHooks {
 public:
  /// `on_gradient(i)` is called with the index into the parameters of `install` whenever parameter i's gradient was
  /// accumulated, and `before_gradient()` before each of that. An exception thrown by them ends the backward and
  /// reaches its caller.
  GradientHooks(std::function<void()> before_gradient, std::function<void(int)> on_gradient);
  ~GradientHooks();
  GradientHooks(const GradientHooks&) = delete;
  GradientHooks& operator=(const GradientHooks&) = delete;

  /// Hooks the node that each parameter has now, where `wanted` and the parameter require a gradient; those that were
  /// hooked and are no longer the parameter's are let go. Cost: some 10 ns per parameter that is hooked already, 0.2 us
  /// for others.
  void install(const std::vector<at::Tensor>& parameters, const std::vector<bool>& wanted);

  void remove();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace zeropage::reduce
