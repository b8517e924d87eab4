#include "zeropage/engine/update.h"

#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "zeropage/optim/adam.h"
#include "zeropage/optim/norm.h"

namespace zeropage::engine {
namespace {

// Elements per task: far above the cost of handing out a task, far below a page.
constexpr std::int64_t kGrainNumel = 1 << 16;

const std::byte* element(const void* base, std::int64_t index, DType dtype) {
  return static_cast<const std::byte*>(base) + index * element_bytes(dtype);
}

double segment_sum_of_squares(const std::byte* data, DType dtype, std::int64_t numel, c10::Device device) {
  if (device.is_cpu()) return optim::sum_of_squares(data, dtype, numel);
  return paging::flat_view(const_cast<std::byte*>(data), numel, scalar_type_of(dtype), device)
      .to(at::kDouble)
      .square()
      .sum()
      .item<double>();
}

optim::AdamStep adam_step_of(const config::AdamParams& group, std::int64_t step, float gradient_scale) {
  optim::AdamStep adam;
  adam.lr = group.lr;
  adam.beta1 = group.beta1;
  adam.beta2 = group.beta2;
  adam.eps = group.eps;
  adam.weight_decay = group.weight_decay;
  adam.bias_correction = group.bias_correction;
  adam.decoupled_decay = group.decoupled_decay;
  adam.step = step;
  adam.gradient_scale = gradient_scale;
  return adam;
}

/// One segment: where it starts in the owned range, and its gradient.
struct SegmentUpdate {
  std::int64_t offset = 0;
  std::int64_t numel = 0;
  const std::byte* gradient = nullptr;
  DType gradient_dtype = DType::kFloat32;
  DType parameter_dtype = DType::kFloat32;
};

void update_on_host(const OwnedRange& own, const SegmentUpdate& segment, const optim::AdamStep& adam) {
  at::parallel_for(0, segment.numel, kGrainNumel, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t at = segment.offset + begin;
    optim::adam_step(own.master + at, own.exp_avg + at, own.exp_avg_sq + at,
                     element(segment.gradient, begin, segment.gradient_dtype), segment.gradient_dtype,
                     own.parameter + at * element_bytes(segment.parameter_dtype), segment.parameter_dtype, end - begin,
                     adam);
  });
}

/// The same formula (see optim/adam.h) in torch's operators.
void update_on_device(const OwnedRange& own, const SegmentUpdate& segment, const optim::AdamStep& adam,
                      c10::Device device) {
  const auto view = [&](float* base) {
    return paging::flat_view(base + segment.offset, segment.numel, at::kFloat, device);
  };
  auto master = view(own.master);
  auto exp_avg = view(own.exp_avg);
  auto exp_avg_sq = view(own.exp_avg_sq);
  auto gradient = paging::flat_view(const_cast<std::byte*>(segment.gradient), segment.numel,
                                    scalar_type_of(segment.gradient_dtype), device)
                      .to(at::kFloat)
                      .mul(adam.gradient_scale);
  if (adam.decoupled_decay) {
    master.mul_(1.0 - adam.lr * adam.weight_decay);
  } else if (adam.weight_decay != 0.0) {
    gradient.add_(master, adam.weight_decay);
  }
  exp_avg.lerp_(gradient, 1.0 - adam.beta1);
  exp_avg_sq.mul_(adam.beta2).addcmul_(gradient, gradient, 1.0 - adam.beta2);
  const double correction1 = adam.bias_correction ? 1.0 - std::pow(adam.beta1, adam.step) : 1.0;
  const double correction2 = adam.bias_correction ? 1.0 - std::pow(adam.beta2, adam.step) : 1.0;
  const auto denominator = exp_avg_sq.sqrt().div_(std::sqrt(correction2)).add_(adam.eps);
  master.addcdiv_(exp_avg, denominator, -adam.lr / correction1);
  if (segment.parameter_dtype != DType::kFloat32) {
    auto* parameter = own.parameter + segment.offset * element_bytes(segment.parameter_dtype);
    paging::flat_view(parameter, segment.numel, scalar_type_of(segment.parameter_dtype), device).copy_(master);
  }
}

}  // namespace

GradientSum sum_gradients(const ModelState& state, const reduce::Reducer& reducer, int rank, c10::Device device) {
  GradientSum sum;
  for (const auto& page : state.layout()->pages()) {
    const auto gradient = reducer.gradient(page.index);
    if (gradient.data == nullptr) continue;
    const auto& own = state.owned(page.index);
    const std::int64_t begin = rank * page.shard_numel;
    for (const auto& segment : state.layout()->segments(page.index, begin, begin + page.shard_numel)) {
      const auto* data = element(gradient.data, segment.page_offset - own.begin, gradient.dtype);
      const double squares = segment_sum_of_squares(data, gradient.dtype, segment.numel, device);
      if (sum.overflow_parameter < 0 && !std::isfinite(squares)) sum.overflow_parameter = segment.parameter;
      sum.sum_of_squares += squares;
    }
  }
  return sum;
}

void update_page(const ModelState& state, const reduce::Reducer& reducer, int page, const UpdateInputs& inputs,
                 c10::Device device) {
  c10::AutoGradMode no_grad(false);
  const auto& spec = state.layout()->pages()[page];
  const auto& own = state.owned(page);
  const auto gradient = reducer.gradient(page);
  for (const auto& piece : state.layout()->segments(page, own.begin, own.begin + own.numel)) {
    if (!inputs.received[piece.parameter]) continue;
    SegmentUpdate segment;
    segment.offset = piece.page_offset - own.begin;
    segment.numel = piece.numel;
    segment.gradient = element(gradient.data, segment.offset, gradient.dtype);
    segment.gradient_dtype = gradient.dtype;
    segment.parameter_dtype = spec.dtype;
    const auto adam = adam_step_of(inputs.groups[spec.group], inputs.steps[piece.parameter], inputs.gradient_scale);
    if (device.is_cpu()) {
      update_on_host(own, segment, adam);
    } else {
      update_on_device(own, segment, adam, device);
    }
  }
}

}  // namespace zeropage::engine
