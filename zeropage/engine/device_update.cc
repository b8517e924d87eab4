#include "zeropage/engine/device_update.h"

#include <c10/core/DeviceGuard.h>

#include <cmath>

#include "zeropage/memory/device_buffer.h"
#include "zeropage/optim/device_kernels.h"
#ifdef ZEROPAGE_CUDA_KERNELS
#include "zeropage/optim/block_codes_cuda.h"
#include "zeropage/optim/norm_cuda.h"
#include "zeropage/optim/update_cuda.h"
#endif

namespace zeropage::engine {
namespace {

using config::OptimizerKind;

/// The inputs of every formula: fp32 views of the arrays, and the scaled gradient, a copy that may be overwritten.
struct Views {
  at::Tensor master, first, second, gradient;
};

void adam(Views& views, const optim::Step& step) {
  const auto& params = step.params;
  if (step.kind != OptimizerKind::kAdam || params.decoupled_decay) {
    views.master.mul_(1.0 - params.lr * params.weight_decay);
  } else if (params.weight_decay != 0.0) {
    views.gradient.add_(views.master, params.weight_decay);
  }
  views.first.lerp_(views.gradient, 1.0 - params.beta1);
  views.second.mul_(params.beta2).addcmul_(views.gradient, views.gradient, 1.0 - params.beta2);
  const double count = static_cast<double>(step.step);
  const double correction1 = params.bias_correction ? 1.0 - std::pow(params.beta1, count) : 1.0;
  const double correction2 = params.bias_correction ? 1.0 - std::pow(params.beta2, count) : 1.0;
  const auto denominator = views.second.sqrt().div_(std::sqrt(correction2)).add_(params.eps);
  views.master.addcdiv_(views.first, denominator, -params.lr / correction1);
}

void lion(Views& views, const optim::Step& step) {
  const auto& params = step.params;
  const auto direction = views.first.mul(params.beta1).add_(views.gradient, 1.0 - params.beta1).sign_();
  views.first.mul_(params.beta2).add_(views.gradient, 1.0 - params.beta2);
  views.master.mul_(1.0 - params.lr * params.weight_decay).add_(direction, -params.lr);
}

void adagrad(Views& views, const optim::Step& step) {
  const auto& params = step.params;
  if (params.weight_decay != 0.0) views.gradient.add_(views.master, params.weight_decay);
  views.first.addcmul_(views.gradient, views.gradient);
  const double rate = params.lr / (1.0 + static_cast<double>(step.step - 1) * params.lr_decay);
  views.master.addcdiv_(views.gradient, views.first.sqrt().add_(params.eps), -rate);
}

void sgd(Views& views, const optim::Step& step) {
  const auto& params = step.params;
  if (params.weight_decay != 0.0) views.gradient.add_(views.master, params.weight_decay);
  if (params.momentum != 0.0) {
    if (step.step == 1) {
      views.first.copy_(views.gradient);
    } else {
      views.first.mul_(params.momentum).add_(views.gradient, 1.0 - params.dampening);
    }
    views.gradient = params.nesterov ? views.gradient.add_(views.first, params.momentum) : views.first;
  }
  views.master.add_(views.gradient, -params.lr);
}

void update_by_operators(const optim::Arrays& arrays, std::int64_t numel, const optim::Step& step, c10::Device device) {
  optim::check(arrays, step);
  const auto view = [&](float* data) {
    return data == nullptr ? at::Tensor() : memory::flat_view(data, numel, at::kFloat, device);
  };
  Views views{view(arrays.master), view(arrays.states[0]), view(arrays.states[1]), {}};
  views.gradient =
      memory::flat_view(const_cast<void*>(arrays.gradient), numel, scalar_type_of(arrays.gradient_dtype), device)
          .to(at::kFloat)
          .mul(step.gradient_scale);
  switch (step.kind) {
    case OptimizerKind::kLion: lion(views, step); break;
    case OptimizerKind::kAdagrad: adagrad(views, step); break;
    case OptimizerKind::kSgd: sgd(views, step); break;
    case OptimizerKind::kNone:
    case OptimizerKind::kLamb:    // lamb_update.h
    case OptimizerKind::kClient:  // update.cc
    case OptimizerKind::kAdam:
    case OptimizerKind::kAdamW: adam(views, step); break;
  }
  if (arrays.parameter_dtype != DType::kFloat32) {
    memory::flat_view(arrays.parameter, numel, scalar_type_of(arrays.parameter_dtype), device).copy_(views.master);
  }
}

#ifdef ZEROPAGE_CUDA_KERNELS
constexpr optim::DeviceKernels kCudaKernels{&optim::update_on_cuda, &optim::square_on_cuda, &optim::encode_on_cuda,
                                            &optim::decode_on_cuda};
[[maybe_unused]] const bool registered =
    (optim::set_device_kernels(static_cast<int>(c10::DeviceType::CUDA), &kCudaKernels), true);
#endif

const optim::DeviceKernels* kernels_of(c10::Device device) {
  return optim::device_kernels(static_cast<int>(device.type()));
}

void update_by_kernels(const optim::DeviceKernels& kernels, const std::vector<RangeUpdate>& ranges,
                       c10::Device device) {
  std::vector<optim::UpdatePiece> pieces;
  for (const auto& [range, segments] : ranges) {
    for (const auto& segment : segments) pieces.push_back({segment.of(range), segment.numel, segment.step});
  }
  const c10::DeviceGuard guard(device);
  kernels.update(pieces, memory::current_stream(device).native_handle());
}

}  // namespace

void update_on_device(const std::vector<RangeUpdate>& ranges, c10::Device device) {
  if (const auto* kernels = kernels_of(device)) return update_by_kernels(*kernels, ranges, device);
  for (const auto& [range, segments] : ranges) {
    for (const auto& segment : segments) {
      update_by_operators(segment.of(range), segment.numel, segment.step, device);
    }
  }
}

bool has_kernels(c10::Device device) { return kernels_of(device) != nullptr; }

}  // namespace zeropage::engine
