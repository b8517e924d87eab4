#include "zeropage/optim/update.h"

#include <fmt/format.h>

#include <algorithm>

#include "zeropage/base/error.h"
#include "zeropage/optim/convert.h"
#include "zeropage/optim/elements.h"
#include "zeropage/optim/rules.h"
#include "zeropage/optim/wide_states.h"

namespace zeropage::optim {
namespace {

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
  for (PackedState& state : moved.packed) state = state.from(offset, state_dtype);
  if (gradient != nullptr) moved.gradient = static_cast<const char*>(gradient) + offset * element_bytes(gradient_dtype);
  if (parameter != nullptr) moved.parameter = static_cast<char*>(parameter) + offset * element_bytes(parameter_dtype);
  return moved;
}

Arrays Arrays::from_block(std::int64_t offset, std::int64_t block) const {
  Arrays moved = from(offset);
  if (state_dtype != config::StateDtype::kInt8) return moved;
  for (std::size_t i = 0; i < packed.size(); ++i) {
    if (packed[i].exponents != nullptr) moved.packed[i].exponents = packed[i].exponents + block;
  }
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
    const bool there = arrays.state_dtype == config::StateDtype::kFloat32 ? arrays.states[i] != nullptr
                                                                          : arrays.packed[i].data != nullptr;
    if (!there) {
      throw UsageError(fmt::format(
          "optimizer update: expected {} state array(s), number {} is not there; a momentum that is to be switched on "
          "later must not be 0 when the engine is made",
          states, i));
    }
  }
}

void check_one_pass(const Arrays& arrays, const Step& step) {
  check(arrays, step);
  if (!takes_one_pass(step.kind)) {
    throw UsageError("optimizer update: Lamb takes two passes (lamb.h), and torch's optimizers run in Python");
  }
}

namespace {

constexpr std::int64_t kBlockNumel = 1024;  // widened parameters stay in the L1 cache

/// Calls `update` on the parameters as fp32, block by block, and rounds the results.
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
  if (arrays.state_dtype != config::StateDtype::kFloat32) {
    return with_wide_states(arrays, numel, step, Access::kChange,
                            [&](const Arrays& wide, std::int64_t count) { update_reference(wide, count, step); });
  }
  if (arrays.master == nullptr) return update_widened(arrays, numel, step, update_reference);
  with_rule(step, [&](const auto& rule) { update_scalars(rule, arrays, numel); });
}

void update(const Arrays& arrays, std::int64_t numel, const Step& step) {
  check_one_pass(arrays, step);
  if (arrays.state_dtype != config::StateDtype::kFloat32) {
    return with_wide_states(arrays, numel, step, Access::kChange,
                            [&](const Arrays& wide, std::int64_t count) { update(wide, count, step); });
  }
  if (arrays.master == nullptr) return update_widened(arrays, numel, step, update);
  with_rule(step, [&](const auto& rule) {
    const std::int64_t done = update_vectors(arrays, numel, step);
    update_scalars(rule, arrays.from(done), numel - done);
  });
}

}  // namespace zeropage::optim
