#include "zeropage/optim/update.h"

#include <fmt/format.h>

#include <algorithm>

#include "zeropage/base/error.h"
#include "zeropage/optim/convert.h"
#include "zeropage/optim/rules.h"

namespace zeropage::optim {
namespace {

// One element of each rule: takes the parameter, the states and the scaled gradient, returns the new parameter.

float update_element(const AdamRule& rule, float p, float& m, float& v, float g) {
  if (rule.l2 != 0.0F) g += rule.l2 * p;
  p *= rule.keep;
  const float difference = g - m;
  m = (rule.lerp_from_moment ? m : g) + rule.lerp_weight * difference;
  v = v * rule.beta2 + rule.one_minus_beta2 * g * g;
  return p + rule.minus_step_size * m / (std::sqrt(v) / rule.sqrt_correction2 + rule.eps);
}

float update_element(const LionRule& rule, float p, float& m, float&, float g) {
  const float direction = rule.beta1 * m + rule.one_minus_beta1 * g;
  m = rule.beta2 * m + rule.one_minus_beta2 * g;
  p *= rule.keep;
  if (direction > 0.0F) return p - rule.lr;
  if (direction < 0.0F) return p + rule.lr;
  return p;
}

float update_element(const AdagradRule& rule, float p, float& s, float&, float g) {
  if (rule.l2 != 0.0F) g += rule.l2 * p;
  s += g * g;
  return p + rule.minus_step_size * g / (std::sqrt(s) + rule.eps);
}

float update_element(const SgdRule& rule, float p, float&, float&, float g) {
  if (rule.l2 != 0.0F) g += rule.l2 * p;
  return p + rule.minus_lr * g;
}

float update_element(const MomentumRule& rule, float p, float& b, float&, float g) {
  if (rule.l2 != 0.0F) g += rule.l2 * p;
  b = rule.keep_buffer * b + rule.take_gradient * g;
  return p + rule.minus_lr * (rule.nesterov ? g + rule.momentum * b : b);
}

bool is_known(DType dtype) { return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16; }

template <typename Rule>
void update_scalars(const Rule& rule, const Arrays& arrays, std::int64_t numel) {
  float none = 0.0F;
  for (std::int64_t i = 0; i < numel; ++i) {
    float g = 0.0F;
    to_float32(static_cast<const char*>(arrays.gradient) + i * element_bytes(arrays.gradient_dtype),
               arrays.gradient_dtype, &g, 1);
    float& first = Rule::kStates > 0 ? arrays.states[0][i] : none;
    float& second = Rule::kStates > 1 ? arrays.states[1][i] : none;
    arrays.master[i] = update_element(rule, arrays.master[i], first, second, g * rule.gradient_scale);
    if (arrays.parameter_dtype != DType::kFloat32) {
      from_float32(arrays.master + i, static_cast<char*>(arrays.parameter) + i * element_bytes(arrays.parameter_dtype),
                   arrays.parameter_dtype, 1);
    }
  }
}

}  // namespace

Arrays Arrays::from(std::int64_t offset) const {
  Arrays moved = *this;
  if (master != nullptr) moved.master += offset;
  moved.index += offset;
  for (float*& state : moved.states) {
    if (state != nullptr) state += offset;
  }
  moved.gradient = static_cast<const char*>(gradient) + offset * element_bytes(gradient_dtype);
  if (parameter != nullptr) moved.parameter = static_cast<char*>(parameter) + offset * element_bytes(parameter_dtype);
  return moved;
}

void check(const Arrays& arrays, const Step& step) {
  if (step.step < 1) throw UsageError(fmt::format("optimizer update: step counts from 1, got {}", step.step));
  for (DType dtype : {arrays.gradient_dtype, arrays.parameter_dtype}) {
    if (!is_known(dtype)) {
      throw UsageError(fmt::format("optimizer update: expected gradients and parameters in fp32, bf16 or fp16, got {}",
                                   dtype_name(dtype)));
    }
  }
  if (arrays.master == nullptr && arrays.parameter_dtype == DType::kFloat32) {
    throw UsageError("optimizer update: expected a master, got none; only 16-bit parameters can be their own");
  }
  const int states = config::optimizer_state_count({step.kind, step.params});
  for (int i = 0; i < states; ++i) {
    if (arrays.states[i] == nullptr) {
      throw UsageError(fmt::format(
          "optimizer update: expected {} state array(s), number {} is not there; a momentum that is to be switched on "
          "later must not be 0 when the engine is made",
          states, i));
    }
  }
}

namespace {

void check_one_pass(const Arrays& arrays, const Step& step) {
  check(arrays, step);
  if (step.kind == config::OptimizerKind::kLamb || step.kind == config::OptimizerKind::kTorch) {
    throw UsageError("optimizer update: Lamb takes two passes (lamb.h), and torch's optimizers run in Python");
  }
}

constexpr std::int64_t kBlockNumel = 1024;  // widened parameters stay in the L1 cache

/// Calls `update` on the parameters as fp32, block by block, and rounds what it leaves.
template <typename Update>
void update_widened(const Arrays& arrays, std::int64_t numel, const Step& step, Update&& update) {
  float wide[kBlockNumel];
  for (std::int64_t begin = 0; begin < numel; begin += kBlockNumel) {
    const std::int64_t count = std::min(kBlockNumel, numel - begin);
    const Arrays block = arrays.from(begin);
    to_float32(block.parameter, block.parameter_dtype, wide, count);
    Arrays widened = block;
    widened.master = wide;
    widened.parameter_dtype = DType::kFloat32;
    update(widened, count, step);
    round_stochastically(wide, block.parameter, block.parameter_dtype, count, step.rounding_key,
                         block.index + step.rounding_shift);
  }
}

}  // namespace

void update_reference(const Arrays& arrays, std::int64_t numel, const Step& step) {
  check_one_pass(arrays, step);
  if (arrays.master == nullptr) return update_widened(arrays, numel, step, update_reference);
  with_rule(step, [&](const auto& rule) { update_scalars(rule, arrays, numel); });
}

void update(const Arrays& arrays, std::int64_t numel, const Step& step) {
  check_one_pass(arrays, step);
  if (arrays.master == nullptr) return update_widened(arrays, numel, step, update);
  with_rule(step, [&](const auto& rule) {
    const std::int64_t done = update_vectors(arrays, numel, step);
    update_scalars(rule, arrays.from(done), numel - done);
  });
}

}  // namespace zeropage::optim
