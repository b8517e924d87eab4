#include "zeropage/optim/lamb.h"

#include <algorithm>
#include <cmath>

#include "zeropage/optim/convert.h"
#include "zeropage/optim/norm.h"
#include "zeropage/optim/vector_clones.h"
#include "zeropage/optim/wide_states.h"

namespace zeropage::optim {
namespace {

constexpr std::int64_t kBlockNumel = 2048;  // intermediate values between the loops stay in the L1 cache

struct Scalars {
  float gradient_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, correct_first, correct_second, eps_inside,
      eps_outside, weight_decay;

  explicit Scalars(const Step& step)
      : gradient_scale(step.gradient_scale),
        beta1(static_cast<float>(step.params.beta1)),
        one_minus_beta1(static_cast<float>(1.0 - step.params.beta1)),
        beta2(static_cast<float>(step.params.beta2)),
        one_minus_beta2(static_cast<float>(1.0 - step.params.beta2)),
        correct_first(static_cast<float>(lamb_correction(step).first)),
        correct_second(static_cast<float>(lamb_correction(step).second)),
        eps_inside(step.params.eps_inside_sqrt ? static_cast<float>(step.params.eps) : 0.0F),
        eps_outside(step.params.eps_inside_sqrt ? 0.0F : static_cast<float>(step.params.eps)),
        weight_decay(static_cast<float>(step.params.weight_decay)) {}
};

ZEROPAGE_VECTOR_CLONES
void update_moments(const Scalars& given, const float* __restrict gradient, float* __restrict first,
                    float* __restrict second, std::int64_t numel) {
  const Scalars scalars = given;
  for (std::int64_t i = 0; i < numel; ++i) {
    const float g = gradient[i] * scalars.gradient_scale;
    first[i] = scalars.beta1 * first[i] + scalars.one_minus_beta1 * g;
    second[i] = scalars.beta2 * second[i] + scalars.one_minus_beta2 * g * g;
  }
}

ZEROPAGE_VECTOR_CLONES
void form_direction(const Scalars& given, const float* __restrict master, const float* __restrict first,
                    const float* __restrict second, float* __restrict direction, std::int64_t numel) {
  const Scalars scalars = given;
  for (std::int64_t i = 0; i < numel; ++i) {
    const float root = std::sqrt(second[i] * scalars.correct_second + scalars.eps_inside) + scalars.eps_outside;
    direction[i] = first[i] * scalars.correct_first / root + scalars.weight_decay * master[i];
  }
}

ZEROPAGE_VECTOR_CLONES
void move(float factor, const float* __restrict direction, float* __restrict master, std::int64_t numel) {
  for (std::int64_t i = 0; i < numel; ++i) master[i] -= factor * direction[i];
}

}  // namespace

LambCorrection lamb_correction(const Step& step) {
  if (!step.params.bias_correction) return {};
  const double count = static_cast<double>(step.step);
  return {1.0 / (1.0 - std::pow(step.params.beta1, count)), 1.0 / (1.0 - std::pow(step.params.beta2, count))};
}

LambSums lamb_moments(const Arrays& arrays, std::int64_t numel, const Step& step) {
  check(arrays, step);
  LambSums sums;
  if (arrays.state_dtype != config::StateDtype::kFloat32) {
    with_wide_states(arrays, numel, step, Access::kChange, [&](const Arrays& wide, std::int64_t count) {
      const LambSums part = lamb_moments(wide, count, step);
      sums.parameter += part.parameter;
      sums.direction += part.direction;
    });
    return sums;
  }
  const Scalars scalars(step);
  float buffer[kBlockNumel];
  for (std::int64_t begin = 0; begin < numel; begin += kBlockNumel) {
    const std::int64_t count = std::min(kBlockNumel, numel - begin);
    const Arrays block = arrays.from(begin);
    to_float32(block.gradient, block.gradient_dtype, buffer, count);
    update_moments(scalars, buffer, block.states[0], block.states[1], count);
    form_direction(scalars, block.master, block.states[0], block.states[1], buffer, count);
    sums.parameter += sum_of_squares(block.master, DType::kFloat32, count);
    sums.direction += sum_of_squares(buffer, DType::kFloat32, count);
  }
  return sums;
}

double lamb_ratio(const LambSums& sums, const config::OptimizerParams& params) {
  if (sums.parameter == 0.0 || sums.direction == 0.0) return 1.0;
  const double ratio = std::sqrt(sums.parameter) / std::sqrt(sums.direction);
  return std::max(std::min(ratio, params.max_coeff), params.min_coeff);
}

void lamb_apply(const Arrays& arrays, std::int64_t numel, const Step& step, double ratio) {
  check(arrays, step);
  if (arrays.state_dtype != config::StateDtype::kFloat32) {
    return with_wide_states(arrays, numel, step, Access::kLook,
                            [&](const Arrays& wide, std::int64_t count) { lamb_apply(wide, count, step, ratio); });
  }
  const Scalars scalars(step);
  const auto factor = static_cast<float>(step.params.lr * ratio);
  float direction[kBlockNumel];
  for (std::int64_t begin = 0; begin < numel; begin += kBlockNumel) {
    const std::int64_t block_numel = std::min(kBlockNumel, numel - begin);
    const Arrays block = arrays.from(begin);
    form_direction(scalars, block.master, block.states[0], block.states[1], direction, block_numel);
    move(factor, direction, block.master, block_numel);
    if (block.parameter_dtype != DType::kFloat32) {
      from_float32(block.master, block.parameter, block.parameter_dtype, block_numel);
    }
  }
}

}  // namespace zeropage::optim
