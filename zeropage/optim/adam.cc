#include "zeropage/optim/adam.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "zeropage/base/error.h"
#include "zeropage/optim/convert.h"
#include "zeropage/optim/vector_clones.h"

namespace zeropage::optim {
namespace {

/// Elements handled between conversions: gradient, master and both moments of a block (16 KiB) stay in the first cache.
constexpr std::int64_t kBlockNumel = 1024;

/// The scalars of a step, rounded to fp32.
struct Scalars {
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

  explicit Scalars(const AdamStep& step) {
    if (step.step < 1) throw UsageError(fmt::format("adam_step: step counts from 1, got {}", step.step));
    const double count = static_cast<double>(step.step);
    const double correction1 = step.bias_correction ? 1.0 - std::pow(step.beta1, count) : 1.0;
    const double correction2 = step.bias_correction ? 1.0 - std::pow(step.beta2, count) : 1.0;
    const float weight = static_cast<float>(1.0 - step.beta1);
    gradient_scale = step.gradient_scale;
    keep = step.decoupled_decay ? static_cast<float>(1.0 - step.lr * step.weight_decay) : 1.0F;
    l2 = step.decoupled_decay ? 0.0F : static_cast<float>(step.weight_decay);
    lerp_from_moment = weight < 0.5F;
    lerp_weight = lerp_from_moment ? weight : weight - 1.0F;
    beta2 = static_cast<float>(step.beta2);
    one_minus_beta2 = static_cast<float>(1.0 - step.beta2);
    sqrt_correction2 = static_cast<float>(std::sqrt(correction2));
    eps = static_cast<float>(step.eps);
    minus_step_size = static_cast<float>(-(step.lr / correction1));
  }
};

/// One element; the definition that both versions share. Returns the new parameter.
inline float update_element(float p, float& m, float& v, float g, const Scalars& s) {
  g *= s.gradient_scale;
  if (s.l2 != 0.0F) g += s.l2 * p;
  p *= s.keep;
  const float difference = g - m;
  m = (s.lerp_from_moment ? m : g) + s.lerp_weight * difference;
  v = v * s.beta2 + s.one_minus_beta2 * g * g;
  return p + s.minus_step_size * m / (std::sqrt(v) / s.sqrt_correction2 + s.eps);
}

ZEROPAGE_VECTOR_CLONES
void update_block(float* __restrict master, float* __restrict exp_avg, float* __restrict exp_avg_sq,
                  const float* __restrict gradient, std::int64_t numel, const Scalars& scalars) {
  const Scalars s = scalars;  // a copy: stores through float pointers could otherwise change it
  for (std::int64_t i = 0; i < numel; ++i) {
    master[i] = update_element(master[i], exp_avg[i], exp_avg_sq[i], gradient[i], s);
  }
}

float load(const void* gradient, DType dtype, std::int64_t i) {
  float value = 0.0F;
  to_float32(static_cast<const char*>(gradient) + i * element_bytes(dtype), dtype, &value, 1);
  return value;
}

}  // namespace

void adam_step(float* master, float* exp_avg, float* exp_avg_sq, const void* gradient, DType gradient_dtype,
               void* parameter, DType parameter_dtype, std::int64_t numel, const AdamStep& step) {
  const Scalars scalars(step);
  float widened[kBlockNumel];
  for (std::int64_t begin = 0; begin < numel; begin += kBlockNumel) {
    const std::int64_t count = std::min(kBlockNumel, numel - begin);
    const char* gradient_block = static_cast<const char*>(gradient) + begin * element_bytes(gradient_dtype);
    const float* block = widened;
    if (gradient_dtype == DType::kFloat32) {
      block = reinterpret_cast<const float*>(gradient_block);
    } else {
      to_float32(gradient_block, gradient_dtype, widened, count);
    }
    update_block(master + begin, exp_avg + begin, exp_avg_sq + begin, block, count, scalars);
    if (parameter_dtype != DType::kFloat32) {
      char* parameter_block = static_cast<char*>(parameter) + begin * element_bytes(parameter_dtype);
      from_float32(master + begin, parameter_block, parameter_dtype, count);
    }
  }
}

void adam_step_reference(float* master, float* exp_avg, float* exp_avg_sq, const void* gradient, DType gradient_dtype,
                         void* parameter, DType parameter_dtype, std::int64_t numel, const AdamStep& step) {
  const Scalars scalars(step);
  for (std::int64_t i = 0; i < numel; ++i) {
    master[i] = update_element(master[i], exp_avg[i], exp_avg_sq[i], load(gradient, gradient_dtype, i), scalars);
    if (parameter_dtype != DType::kFloat32) {
      from_float32(master + i, static_cast<char*>(parameter) + i * element_bytes(parameter_dtype), parameter_dtype, 1);
    }
  }
}

}  // namespace zeropage::optim
