#include "zeropage/reduce/gradient_hooks.h"

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <mutex>
#include <utility>
#include <vector>

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

class BeforeHook final : public torch::autograd::FunctionPreHook {
 public:
  explicit BeforeHook(std::shared_ptr<std::function<void()>> callback) : callback_(std::move(callback)) {}

  variable_list operator()(const variable_list& gradients) override {
    (*callback_)();
    return gradients;
  }

 private:
  std::shared_ptr<std::function<void()>> callback_;
};

}  // namespace

struct GradientHooks::Impl {
  struct Installed {
    NodePtr accumulator =
        nullptr;  // kept alive, because the parameter has only a weak reference, and the hook would be destroyed with it
    std::uintptr_t key = 0;
    const torch::autograd::FunctionPreHook* before = nullptr;

    void remove() {
      if (accumulator != nullptr) {
        accumulator->del_post_hook(key);
        std::erase_if(accumulator->pre_hooks(), [&](const auto& each) { return each.get() == before; });
      }
      accumulator = nullptr;
    }
  };
  std::shared_ptr<std::function<void()>> before;
  std::shared_ptr<std::function<void(int)>> callback;
  std::vector<Installed> installed;  // by parameter
  std::mutex mutex;                  // a second thread may run another forward
};

GradientHooks::GradientHooks(c10::Device device, std::function<void()> before_gradient,
                             std::function<void(int)> on_gradient)
    : device_(device), impl_(std::make_unique<Impl>()) {
  impl_->before = std::make_shared<std::function<void()>>(std::move(before_gradient));
  impl_->callback = std::make_shared<std::function<void(int)>>(std::move(on_gradient));
}

void GradientHooks::install(const std::vector<at::Tensor>& parameters, const std::vector<bool>& wanted) {
  const std::lock_guard lock(impl_->mutex);
  impl_->installed.resize(parameters.size());
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    auto& hook = impl_->installed[i];
    const auto& parameter = parameters[i];
    if (!wanted[i] || !parameter.defined() || !parameter.requires_grad() || !parameter.is_leaf()) {
      hook.remove();
      continue;
    }
    auto accumulator = torch::autograd::impl::try_get_grad_accumulator(parameter);
    if (accumulator != nullptr && accumulator == hook.accumulator) continue;
    hook.remove();
    if (accumulator == nullptr) accumulator = torch::autograd::impl::grad_accumulator(parameter);
    hook.key = accumulator->add_post_hook(std::make_unique<Hook>(impl_->callback, static_cast<int>(i)));
    auto before = std::make_unique<BeforeHook>(impl_->before);
    hook.before = before.get();
    accumulator->add_pre_hook(std::move(before));
    hook.accumulator = std::move(accumulator);
  }
}

void GradientHooks::install_early(const std::vector<at::Tensor>& parameters, const std::vector<bool>& wanted) {
  install(parameters, wanted);
  early_ = !device_.is_cpu();
}

void GradientHooks::install_again(const std::vector<at::Tensor>& parameters, const std::vector<bool>& wanted) {
  if (std::exchange(early_, false)) remove();
  install(parameters, wanted);
}

void GradientHooks::remove() {
  const std::lock_guard lock(impl_->mutex);
  for (auto& hook : impl_->installed) hook.remove();
}

GradientHooks::~GradientHooks() { remove(); }

}  // namespace zeropage::reduce
