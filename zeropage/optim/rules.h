/// \file
/// The optimizers of update.h as types: each holds the scalars of one step, prepared in double and rounded to fp32. The
/// scalar reference (update.cc) and the vector kernels (update_vectors.cc) have one function for each of them. Internal
/// to this room.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "zeropage/optim/update.h"

namespace zeropage::optim {

struct AdamRule {
  static constexpr int kStates = 2;
  float gradient_scale;
  float keep;             ///< factor of the decoupled decay; 1 without
  float l2;               ///< decay added to the gradient; 0 without
  bool lerp_from_moment;  ///< torch's lerp starts from the nearer end
  float lerp_weight;
  float beta2;
  float one_minus_beta2;
  float sqrt_correction2;
  float eps;
  float minus_step_size;

  AdamRule() = default;
  explicit AdamRule(const Step& step) {
    const auto& params = step.params;
    const bool decoupled = step.kind != config::OptimizerKind::kAdam || params.decoupled_decay;
    const double count = static_cast<double>(step.step);
    const double correction1 = params.bias_correction ? 1.0 - std::pow(params.beta1, count) : 1.0;
    const double correction2 = params.bias_correction ? 1.0 - std::pow(params.beta2, count) : 1.0;
    const float weight = static_cast<float>(1.0 - params.beta1);
    gradient_scale = step.gradient_scale;
    keep = decoupled ? static_cast<float>(1.0 - params.lr * params.weight_decay) : 1.0F;
    l2 = decoupled ? 0.0F : static_cast<float>(params.weight_decay);
    lerp_from_moment = weight < 0.5F;
    lerp_weight = lerp_from_moment ? weight : weight - 1.0F;
    beta2 = static_cast<float>(params.beta2);
    one_minus_beta2 = static_cast<float>(1.0 - params.beta2);
    sqrt_correction2 = static_cast<float>(std::sqrt(correction2));
    eps = static_cast<float>(params.eps);
    minus_step_size = static_cast<float>(-(params.lr / correction1));
  }
};

struct LionRule {
  static constexpr int kStates = 1;
  float gradient_scale;
  float keep;
  float beta1;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float lr;

  LionRule() = default;
  explicit LionRule(const Step& step)
      : gradient_scale(step.gradient_scale),
        keep(static_cast<float>(1.0 - step.params.lr * step.params.weight_decay)),
        beta1(static_cast<float>(step.params.beta1)),
        one_minus_beta1(static_cast<float>(1.0 - step.params.beta1)),
        beta2(static_cast<float>(step.params.beta2)),
        one_minus_beta2(static_cast<float>(1.0 - step.params.beta2)),
        lr(static_cast<float>(step.params.lr)) {}
};

struct AdagradRule {
  static constexpr int kStates = 1;
  float gradient_scale;
  float l2;
  float eps;
  float minus_step_size;

  AdagradRule() = default;
  explicit AdagradRule(const Step& step)
      : gradient_scale(step.gradient_scale),
        l2(static_cast<float>(step.params.weight_decay)),
        eps(static_cast<float>(step.params.eps)),
        minus_step_size(
            static_cast<float>(-step.params.lr / (1.0 + static_cast<double>(step.step - 1) * step.params.lr_decay))) {}
};

struct SgdRule {
  static constexpr int kStates = 0;
  float gradient_scale;
  float l2;
  float minus_lr;

  SgdRule() = default;
  explicit SgdRule(const Step& step)
      : gradient_scale(step.gradient_scale),
        l2(static_cast<float>(step.params.weight_decay)),
        minus_lr(static_cast<float>(-step.params.lr)) {}
};

struct MomentumRule : SgdRule {
  static constexpr int kStates = 1;
  float keep_buffer;    ///< 0 at the first step, which starts the buffer
  float take_gradient;  ///< 1 at the first step
  float momentum;
  bool nesterov;

  MomentumRule() = default;
  explicit MomentumRule(const Step& step)
      : SgdRule(step),
        keep_buffer(step.step == 1 ? 0.0F : static_cast<float>(step.params.momentum)),
        take_gradient(step.step == 1 ? 1.0F : static_cast<float>(1.0 - step.params.dampening)),
        momentum(static_cast<float>(step.params.momentum)),
        nesterov(step.params.nesterov) {}
};

/// Calls `call` with the rule of `step`.
template <typename Call>
auto with_rule(const Step& step, Call&& call) {
  using config::OptimizerKind;
  switch (step.kind) {
    case OptimizerKind::kLion: return call(LionRule(step));
    case OptimizerKind::kAdagrad: return call(AdagradRule(step));
    case OptimizerKind::kSgd:
      if (step.params.momentum == 0.0) return call(SgdRule(step));
      return call(MomentumRule(step));
    case OptimizerKind::kNone:
    case OptimizerKind::kAdam:
    case OptimizerKind::kLamb:
    case OptimizerKind::kClient:
    case OptimizerKind::kAdamW: break;
  }
  return call(AdamRule(step));
}

/// The vector part of `update`: as many complete vectors as there are in `numel` elements. Returns the number of
/// updated elements. The types have already been checked.
std::int64_t update_vectors(const Arrays& arrays, std::int64_t numel, const Step& step);

/// `update_vectors` with one instruction set.
struct VectorKernel {
  const char* name;
  std::int64_t (*update)(const Arrays&, std::int64_t, const Step&);
};

/// The kernels that this processor can run, the widest first.
std::vector<VectorKernel> vector_kernels();

}  // namespace zeropage::optim
