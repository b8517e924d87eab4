/// \file
/// Tells the reducer when autograd has finished a parameter's gradient: a post hook on the parameter's AccumulateGrad
/// node, like that of c10d's Reducer, which runs after the gradient is in `p.grad`, on any thread of autograd.
///
/// A parameter has a weak reference to its node, and gets another node after `p.data = ...`, `p.set_(...)`,
/// `requires_grad_(True)` and similar calls: hooks are installed before each forward and backward, and after each step.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <functional>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

namespace zeropage::reduce {

/// Hooks on a set of parameters, removed with the object.
class GradientHooks {
 public:
  /// `on_gradient(i)` is called with the index into the parameters of `install` whenever parameter i's gradient was
  /// accumulated, and `before_gradient()` before that. Their exceptions end the backward and reach its caller.
  GradientHooks(c10::Device device, std::function<void()> before_gradient, std::function<void(int)> on_gradient);
  ~GradientHooks();
  GradientHooks(const GradientHooks&) = delete;
  GradientHooks& operator=(const GradientHooks&) = delete;

  /// Hooks the current node of each parameter that is `wanted` and requires a gradient, and releases hooked nodes that
  /// are no longer a parameter's. Cost: some 10 ns per parameter that is hooked already, 0.2 us for others.
  void install(const std::vector<at::Tensor>& parameters, const std::vector<bool>& wanted);

  /// The same for nodes that may be used on another stream than the current one. A node of a device remembers the
  /// stream on which it was made, so `install_again` replaces these nodes by those of its current stream.
  void install_early(const std::vector<at::Tensor>& parameters, const std::vector<bool>& wanted);
  void install_again(const std::vector<at::Tensor>& parameters, const std::vector<bool>& wanted);

  void remove();

 private:
  struct Impl;
  c10::Device device_;
  bool early_ = false;
  std::unique_ptr<Impl> impl_;
};

}  // namespace zeropage::reduce
