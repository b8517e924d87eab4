/// \file
/// The rules of rules.h for one element. The scalar reference and the CUDA kernels use this source. Without fused
/// multiply-add, and with correctly rounded roots and divisions, both give the same bits. Internal to this room.
#pragma once

#include <cmath>

#include "zeropage/optim/rules.h"

#if defined(__CUDACC__)
#define ZEROPAGE_ELEMENT __host__ __device__ inline
#else
#define ZEROPAGE_ELEMENT inline
#endif

namespace zeropage::optim {

/// One element of each rule: takes the parameter, the states and the scaled gradient, returns the new parameter.

ZEROPAGE_ELEMENT float update_element(const AdamRule& rule, float p, float& m, float& v, float g) {
  if (rule.l2 != 0.0F) g += rule.l2 * p;
  p *= rule.keep;
  const float difference = g - m;
  m = (rule.lerp_from_moment ? m : g) + rule.lerp_weight * difference;
  v = v * rule.beta2 + rule.one_minus_beta2 * g * g;
  return p + rule.minus_step_size * m / (std::sqrt(v) / rule.sqrt_correction2 + rule.eps);
}

ZEROPAGE_ELEMENT float update_element(const LionRule& rule, float p, float& m, float&, float g) {
  const float direction = rule.beta1 * m + rule.one_minus_beta1 * g;
  m = rule.beta2 * m + rule.one_minus_beta2 * g;
  p *= rule.keep;
  if (direction > 0.0F) return p - rule.lr;
  if (direction < 0.0F) return p + rule.lr;
  return p;
}

ZEROPAGE_ELEMENT float update_element(const AdagradRule& rule, float p, float& s, float&, float g) {
  if (rule.l2 != 0.0F) g += rule.l2 * p;
  s += g * g;
  return p + rule.minus_step_size * g / (std::sqrt(s) + rule.eps);
}

ZEROPAGE_ELEMENT float update_element(const SgdRule& rule, float p, float&, float&, float g) {
  if (rule.l2 != 0.0F) g += rule.l2 * p;
  return p + rule.minus_lr * g;
}

ZEROPAGE_ELEMENT float update_element(const MomentumRule& rule, float p, float& b, float&, float g) {
  if (rule.l2 != 0.0F) g += rule.l2 * p;
  b = rule.keep_buffer * b + rule.take_gradient * g;
  return p + rule.minus_lr * (rule.nesterov ? g + rule.momentum * b : b);
}

}  // namespace zeropage::optim
