#include "zeropage/reduce/gradient_hooks.h"

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <utility>

namespace zeropage::reduce {
namespace {

using torch::autograd::variable_list;
// shared_ptr or intrusive_ptr, depending on torch's version.
using NodePtr = decltype(torch::autograd::impl::grad_accumulator(std::declval<const at::Tensor&>()));

class Hook final : public torch::autograd::FunctionPostHook {
 public:
  Hook(std::shared_ptr<std::function<void(int)>> callback, int parameter)
      : callback_(std::move(callback)), parameter_(parameter) {}

  variable_list operator()(const variable_list& outputs, const variable_list& /*grad_outputs*/) override {
    (*callback_)(parameter_);
    return outputs;
  }

 private:
  std::shared_ptr<std::function<void(int)>> callback_;
  int parameter_;
};

}  // namespace

struct GradientHooks::Impl {
  struct Installed {
    NodePtr accumulator;  // kept alive: the parameter itself holds it weakly, and the hook would go with it
    std::uintptr_t key;
  };
  std::vector<Installed> installed;
};

GradientHooks::GradientHooks(const std::vector<at::Tensor>& parameters, std::function<void(int)> on_gradient)
    : impl_(std::make_unique<Impl>()) {
  auto callback = std::make_shared<std::function<void(int)>>(std::move(on_gradient));
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (!parameters[i].defined() || !parameters[i].requires_grad()) continue;
    auto accumulator = torch::autograd::impl::grad_accumulator(parameters[i]);
    const auto key = accumulator->add_post_hook(std::make_unique<Hook>(callback, static_cast<int>(i)));
    impl_->installed.push_back({std::move(accumulator), key});
  }
}

GradientHooks::~GradientHooks() {
  for (auto& hook : impl_->installed) hook.accumulator->del_post_hook(hook.key);
}

}  // namespace zeropage::reduce
