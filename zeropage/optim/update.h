/// \file
/// One elementwise optimizer step over flat fp32 state, in one pass over memory: unscale, update, round. Per element,
/// with g = gradient * gradient_scale:
///
/// Adam (Kingma and Ba, 2015), AdamW (Loshchilov and Hutter, 2019); states m, v
///   decoupled decay:  p = p * (1 - lr * weight_decay)        otherwise:  g = g + weight_decay * p
///   m = m + (1 - beta1) * (g - m)                            (the form torch's lerp takes)
///   v = v * beta2 + (1 - beta2) * g * g
///   p = p - lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
/// Lion (Chen et al., 2023); state m
///   p = p * (1 - lr * weight_decay) - lr * sign(beta1 * m + (1 - beta1) * g)
///   m = beta2 * m + (1 - beta2) * g
/// Adagrad (Duchi et al., 2011); state s
///   g = g + weight_decay * p
///   s = s + g * g
///   p = p - lr / (1 + (step - 1) * lr_decay) * g / (sqrt(s) + eps)
/// SGD (momentum after Sutskever et al., 2013, as in torch); state b, none without momentum
///   g = g + weight_decay * p
///   b = momentum * b + (1 - dampening) * g, at the first step b = g;  g = b, with Nesterov g = g + momentum * b
///   p = p - lr * g
///
/// These are the operations of torch.optim (single tensor) in their order; Lion, which torch does not have, follows its
/// paper. Scalars are prepared in double and rounded to fp32 once. No operations are fused to multiply-add, but torch's
/// lerp may be: tests/test_optimizers.py checks the difference. Results have the same bits on every machine, for any
/// alignment and any division of a range into calls.
#pragma once

#include <array>
#include <cstdint>

#include "zeropage/base/dtype.h"
#include "zeropage/config/config.h"
#include "zeropage/optim/packed_state.h"

namespace zeropage::optim {

/// The values of one update of a range, in addition to the arrays.
struct Step {
  config::OptimizerKind kind = config::OptimizerKind::kAdamW;  ///< kNone: AdamW
  config::OptimizerParams params = {};
  std::int64_t step = 1;           ///< number of this parameter's updates, including this one
  float gradient_scale = 1.0F;     ///< factor of gradients: clip coefficient, loss scale and others
  std::uint64_t rounding_key = 0;  ///< key of stochastic rounding, different for every parameter and step
  std::int64_t rounding_shift =
      0;  ///< index within the parameter minus Arrays::index: the same for any start of a range

  bool operator==(const Step&) const = default;
};

/// The arrays of one update, [numel] each, aligned to their elements and without overlap.
struct Arrays {
  float* master = nullptr;  ///< null: a 16-bit parameter is its own master, and is rounded stochastically
  std::array<float*, config::kMaxOptimizerStates> states = {};  ///< config::optimizer_state_count of them
  config::StateDtype state_dtype = config::StateDtype::kFloat32;
  std::array<PackedState, config::kMaxOptimizerStates> packed = {};  ///< instead of `states` when these are not fp32
  const void* gradient = nullptr;                                    ///< fp32, bf16 or fp16
  DType gradient_dtype = DType::kFloat32;
  void* parameter = nullptr;  ///< bf16 or fp16: gets the rounded master; fp32: not used, the master is the parameter
  DType parameter_dtype = DType::kFloat32;
  std::int64_t index = 0;  ///< index of the first element in the arrays from which these were made by `from`

  /// The same arrays from element `offset` on; with int8 states a multiple of kPackedBlockNumel.
  Arrays from(std::int64_t offset) const;

  /// The same from an element on with which block `block` of the states begins: each parameter's part of a range begins
  /// a block.
  Arrays from_block(std::int64_t offset, std::int64_t block) const;
};

/// Whether `update` below is all of an optimizer's step: Lamb takes two passes (lamb.h), and torch's run in Python.
constexpr bool takes_one_pass(config::OptimizerKind kind) {
  return kind != config::OptimizerKind::kLamb && kind != config::OptimizerKind::kClient;
}

/// Updates `numel` elements; 16-bit parameters are rounded to nearest, ties to even. Uses the widest vectors of this
/// processor. Cost: one pass over memory; with Adam 28 bytes per element in fp32, 30 with a 16-bit parameter, 28 if the
/// gradient is 16-bit too; states in bf16 or int8 take 4 or 6 bytes off each. Errors: UsageError for other types, step
/// < 1, a state that is needed and null, or an optimizer that is not one of these.
void update(const Arrays& arrays, std::int64_t numel, const Step& step);

/// Throws UsageError for invalid arrays and steps of any optimizer.
void check(const Arrays& arrays, const Step& step);

/// Also throws for those that `update` would refuse.
void check_one_pass(const Arrays& arrays, const Step& step);

/// The scalar reference: one element after the other, without vectors; `update` must give the same bits. It is the
/// definition and the reference of tests, and it runs on the few elements after the last complete vector.
void update_reference(const Arrays& arrays, std::int64_t numel, const Step& step);

}  // namespace zeropage::optim
