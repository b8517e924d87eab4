#include "zeropage/session/muon.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "zeropage/session/newton_schulz.h"

namespace zeropage::session {
namespace {

/// The factor of the learning rate.
double adjustment(const std::string& kind, std::int64_t rows, std::int64_t columns) {
  const auto height = static_cast<double>(rows);
  const auto width = static_cast<double>(columns);
  return kind == "match_rms_adamw" ? 0.2 * std::sqrt(std::max(height, width))
                                   : std::sqrt(std::max(1.0, height / width));
}

std::optional<at::ScalarType> dtype_named(const std::string& name) {
  if (name == "bf16") return at::kBFloat16;
  if (name == "fp16") return at::kHalf;
  if (name == "fp32") return at::kFloat;
  return std::nullopt;
}

}  // namespace

std::vector<at::Tensor> as_matrices(const at::Tensor& update, std::int64_t count) {
  if (count == 0 && update.dim() == 2) return {update};
  if (count == 0 && update.dim() == 3) return update.unbind();
  return update.reshape({update.size(0), -1}).chunk(std::max<std::int64_t>(count, 1));
}

void muon_step(at::Tensor parameter, const at::Tensor& gradient, at::Tensor momentum, const MuonOptions& options) {
  momentum.lerp_(gradient, 1 - options.momentum);
  const at::Tensor update = options.nesterov ? gradient.lerp(momentum, options.momentum) : momentum;
  const auto matrices = as_matrices(update, options.matrices);
  std::vector<at::Tensor> made;
  for (const auto& matrix : matrices) {
    made.push_back(orthogonal(matrix, options.ns_method, options.ns_steps, dtype_named(options.ns_dtype)));
  }
  parameter.mul_(1 - options.lr * options.weight_decay);
  const at::Tensor all = made.size() == 1 ? made.front() : at::stack(made);
  const double rate = options.lr * adjustment(options.adjust_lr_fn, matrices[0].size(0), matrices[0].size(1));
  parameter.add_(all.reshape(parameter.sizes()), -rate);
}

void adam_step(at::Tensor parameter, at::Tensor gradient, at::Tensor exp_avg, at::Tensor exp_avg_sq, double step,
               const MuonAdamOptions& options) {
  if (options.weight_decay != 0.0) {
    if (options.adam_w_mode) {
      parameter.mul_(1 - options.lr * options.weight_decay);
    } else {
      gradient = gradient.add(parameter, options.weight_decay);
    }
  }
  exp_avg.lerp_(gradient, 1 - options.beta1);
  exp_avg_sq.mul_(options.beta2).addcmul_(gradient, gradient, 1 - options.beta2);
  const double step_size = options.lr / (1 - std::pow(options.beta1, step));
  const at::Tensor scale = (exp_avg_sq.sqrt() / std::sqrt(1 - std::pow(options.beta2, step))).add_(options.eps);
  parameter.addcdiv_(exp_avg, scale, -step_size);
}

}  // namespace zeropage::session
