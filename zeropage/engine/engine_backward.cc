// Backwards: the engine's own, and those run by the program.
#include <ATen/ops/div.h>
#include <ATen/ops/mul.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include "zeropage/base/error.h"
#include "zeropage/base/host_error.h"
#include "zeropage/engine/engine_impl.h"

namespace zeropage::engine {
namespace {

void check_loss(const at::Tensor& loss, std::string_view caller) {
  if (!loss.defined() || loss.numel() != 1) {
    throw UsageError(fmt::format("{}() expects a scalar tensor, the loss, got {}; reduce it first (loss.mean())",
                                 caller, loss.defined() ? fmt::format("{} elements", loss.numel()) : "nothing"));
  }
  if (!loss.requires_grad()) {
    throw UsageError(fmt::format(
        "{}() got a loss that does not depend on any parameter that requires a gradient; was the forward run "
        "under no_grad or inference_mode, or through .detach()?",
        caller));
  }
}

}  // namespace

/// Common start of all backwards. Returns whether a step follows this one.
bool Engine::Impl::open_backward() {
  state_.require_types();
  gradients_->apply_user_writes();
  recorder_.end_forward();
  if (timeline() != nullptr) backward_begin_ns_ = Timeline::now_ns();
  const bool boundary = window_.at_boundary();
  // If micro steps are not counted, the last backward is not known.
  if (boundary && config_.batch.counted) speculation_->begin(divisor(), groups_, steps_);
  backward_failed_ = true;
  return boundary;
}

void Engine::Impl::begin_backward() {
  const bool boundary = open_backward();
  reducer_->begin_backward(boundary, window_.steps() > 1 || !window_.is_new());
}

void Engine::Impl::end_backward() {
  reducer_->end_backward();
  if (window_.at_boundary()) {
    reducer_->finish();
    gradients_->publish(divisor());
    second_update_.note();
  }
  backward_failed_ = false;
  window_.note_backward();
  if (timeline() != nullptr) timeline()->add(SpanKind::kBackward, "backward", -1, backward_begin_ns_);
}

/// For a backward that the engine does not run: it begins with `begin`, unless it has begun, and ends like the engine's
/// own.
void Engine::Impl::watch_backward(const std::function<void()>& begin) {
  const auto end = [self = std::weak_ptr<Impl*>(self_)] {
    try {
      if (const auto alive = self.lock()) (*alive)->end_backward();
    } catch (const Error&) {
      rethrow_for_host();
    }
  };
  try {
    require_whole_state("backward");
    other_backward_.watch(begin, end);
  } catch (const Error&) {
    rethrow_for_host();
  }
}

/// Called on a thread of autograd. If the engine has not begun this backward, the program runs it: `loss.backward()`.
void Engine::Impl::before_gradient() {
  if (in_backward_) return;
  watch_backward([this] {
    const float factor = program_factor();
    reducer_->begin_program_backward(open_backward(), factor);
  });
}

/// The factor for gradients of a backward run by the program. It includes fp16's loss scale if the forward did not go
/// through the engine either, for example with one loss of several models; then gradients too small for fp16 are lost.
float Engine::Impl::program_factor() {
  if (scale() != 1.0 && forward_begun_) {
    throw UsageError(fmt::format(
        "Loss scaling is required: a backward ran that did not go through the engine, so that its gradients lack the "
        "loss scale, {}, of fp16; call engine.backward(loss), or engine.scale(loss).backward()",
        scale()));
  }
  if (scale() != 1.0 && job().rank() == 0) {
    warn_once_.warn("unscaled",
                    "a loss of fp16 was not scaled, since its forward did not go through the engine: its gradients are "
                    "right but for those too small for fp16; engine.scale(loss) scales one");
  }
  return static_cast<float>(scale() / window_.steps());
}

/// The loss itself is multiplied by the scale; its backward begins and ends like the engine's own.
at::Tensor Engine::Impl::scale_loss(const at::Tensor& loss) {
  require_whole_state("scale");
  check_loss(loss, "scale");
  const at::Tensor scaled = at::mul(loss.to(at::kFloat), scale());
  scaled.register_hook([self = std::weak_ptr<Impl*>(self_)](const at::Tensor& gradient) {
    const auto alive = self.lock();
    if (!alive) {
      try {
        throw UsageError("the engine that scaled this loss was destroyed before the backward");
      } catch (const Error&) {
        rethrow_for_host();
      }
    }
    auto& impl = **alive;
    impl.watch_backward([&impl] { impl.begin_backward(); });
    return at::div(gradient, static_cast<double>(impl.window_.steps()));
  });
  return scaled;
}

at::Tensor Engine::Impl::backward(const at::Tensor& loss, const BackwardOptions& options) {
  require_whole_state("backward");
  check_loss(loss, "backward");
  const double parts = options.scale_by_accumulation ? static_cast<double>(window_.steps()) : 1.0;
  at::Tensor divided = parts == 1.0 ? loss : at::mul(loss.to(at::kFloat), 1.0 / parts);
  const at::Tensor scaled = scale() == 1.0 ? divided : at::mul(divided.to(at::kFloat), scale());
  begin_backward();
  in_backward_ = true;
  try {
    torch::autograd::backward({scaled}, {}, options.retain_graph);
  } catch (...) {
    in_backward_ = false;
    throw;
  }
  in_backward_ = false;
  end_backward();
  return divided.detach();
}

}  // namespace zeropage::engine
