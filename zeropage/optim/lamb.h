/// \file
/// Lamb (You et al., 2020, Algorithm 2). The step of a parameter depends on two norms over the whole parameter. So
/// there are two passes, and between them an exchange among the ranks that hold parts. Per element, with g = gradient *
/// gradient_scale; states m and v:
///
///   first     m = beta1 * m + (1 - beta1) * g
///             v = beta2 * v + (1 - beta2) * g * g
///   both      a = m / (1 - beta1^step), b = v / (1 - beta2^step)      without bias_correction: a = m, b = v
///             u = a / (sqrt(b) + eps) + weight_decay * p              with eps_inside_sqrt: a / sqrt(b + eps)
///   second    p = p - lr * ratio * u
///
/// ratio = |p| / |u| of the whole parameter before the step, kept within min_coeff and max_coeff, where the paper's phi
/// bounds |p|; 1 where a norm is 0. This is DeepSpeed's FusedLamb (csrc/lamb/fused_lamb_cuda_kernel.cu; older releases
/// corrected the step size instead of m and v) with its parameters and their defaults: betas, eps, eps_inside_sqrt,
/// weight_decay, bias_correction, max_coeff 10, min_coeff 0.01; its max_grad_norm is gradient_clipping.
///
/// The second pass computes u again from the results of the first, so u is not stored. No operations are fused to
/// multiply-add, so the bits are the same on every machine.
#pragma once

#include <cstdint>

#include "zeropage/optim/update.h"

namespace zeropage::optim {

/// Sums of squares over a range, in double.
struct LambSums {
  double parameter = 0.0;
  double direction = 0.0;  ///< of u
};

/// The factors of m and v, which start at 0: 1 / (1 - beta^step), or 1.
struct LambCorrection {
  double first = 1.0;
  double second = 1.0;
};

LambCorrection lamb_correction(const Step& step);

/// The first pass over `numel` elements: updates the moments, reads the master. The sums depend on the values only.
/// Cost: reads gradient, master and moments, writes the moments. Errors: as update.
LambSums lamb_moments(const Arrays& arrays, std::int64_t numel, const Step& step);

/// The ratio of a parameter with these sums.
double lamb_ratio(const LambSums& sums, const config::OptimizerParams& params);

/// The second pass: master and rounded parameter. The gradient is not read. Cost: reads master and moments, writes the
/// master. Errors: as update.
void lamb_apply(const Arrays& arrays, std::int64_t numel, const Step& step, double ratio);

}  // namespace zeropage::optim
