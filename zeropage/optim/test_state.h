/// \file
/// For tests of the update kernels: random memory that is compared bit by bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "zeropage/optim/convert.h"
#include "zeropage/optim/update.h"

namespace zeropage::optim {

/// Types of gradients and parameters.
inline constexpr DType kTestDtypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

/// Every optimizer, with and without its optional features.
inline std::vector<Step> one_pass_steps() {
  using config::OptimizerKind;
  using config::OptimizerParams;
  const OptimizerParams decayed{.lr = 1e-2, .weight_decay = 0.1};
  OptimizerParams l2 = decayed;
  l2.decoupled_decay = false;
  OptimizerParams uncorrected = decayed;
  uncorrected.bias_correction = false;
  OptimizerParams slowing = decayed;
  slowing.lr_decay = 0.1;
  OptimizerParams momentum = decayed;
  momentum.momentum = 0.9;
  OptimizerParams dampened = momentum;
  dampened.dampening = 0.25;
  OptimizerParams nesterov = momentum;
  nesterov.nesterov = true;
  return {
      {OptimizerKind::kAdamW, {}},
      {OptimizerKind::kAdamW, decayed, 7, 0.37F},
      {OptimizerKind::kAdam, l2, 7, 0.37F},
      {OptimizerKind::kAdamW, uncorrected, 7, 0.37F},
      {OptimizerKind::kAdam, {.beta1 = 0.3, .beta2 = 0.5, .eps = 1e-3}, 2},
      {OptimizerKind::kLion, {.lr = 1e-3, .beta2 = 0.99}},
      {OptimizerKind::kLion, decayed, 3, 0.37F},
      {OptimizerKind::kAdagrad, {.lr = 1e-2, .eps = 1e-10}},
      {OptimizerKind::kAdagrad, slowing, 5, 0.37F},
      {OptimizerKind::kSgd, {.lr = 0.1}},
      {OptimizerKind::kSgd, decayed, 4, 0.37F},
      {OptimizerKind::kSgd, momentum, 1, 0.37F},
      {OptimizerKind::kSgd, dampened, 4, 0.37F},
      {OptimizerKind::kSgd, nesterov, 4, 0.37F},
  };
}

/// The memory of one update. Everything after the updated elements must not change.
struct State {
  std::vector<float> master, first, second;
  std::vector<char> gradient, parameter;
  DType gradient_dtype, parameter_dtype;

  /// signed_first: the first state may be negative, as a momentum and unlike a sum of squares.
  State(std::int64_t numel, DType gradient_dtype, DType parameter_dtype, unsigned seed, bool signed_first = false)
      : master(numel),
        first(numel),
        second(numel),
        gradient(numel * 4),
        parameter(numel * 4, 0x55),
        gradient_dtype(gradient_dtype),
        parameter_dtype(parameter_dtype) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> wide(numel);
    for (std::int64_t i = 0; i < numel; ++i) {
      master[i] = normal(random);
      const float value = normal(random);
      first[i] = 0.01F * (signed_first ? value : std::abs(value));
      second[i] = 0.01F * std::abs(normal(random));
      wide[i] = normal(random);
    }
    from_float32(wide.data(), gradient.data(), gradient_dtype, numel);
  }

  Arrays arrays(std::int64_t begin = 0) {
    const Arrays all{.master = master.data(),
                     .states = {first.data(), second.data()},
                     .gradient = gradient.data(),
                     .gradient_dtype = gradient_dtype,
                     .parameter = parameter.data(),
                     .parameter_dtype = parameter_dtype};
    return all.from(begin);
  }

  bool operator==(const State& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    return same(master, other.master) && same(first, other.first) && same(second, other.second) &&
           parameter == other.parameter;
  }
};

/// Memory of one packed state: for one piece, or for several that each begin a block.
struct Packed {
  std::vector<std::uint16_t> data;
  std::vector<std::uint8_t> exponents;
  config::StateDtype dtype;
  bool squares;

  Packed(std::int64_t numel, config::StateDtype dtype, bool squares, std::int64_t pieces = 1)
      : data(numel), exponents(numel / kPackedBlockNumel + pieces), dtype(dtype), squares(squares) {}
  PackedState state() { return {data.data(), dtype == config::StateDtype::kInt8 ? exponents.data() : nullptr}; }
  void pack_all(const std::vector<float>& wide, std::uint64_t key) {
    pack(wide.data(), state(), dtype, squares, static_cast<std::int64_t>(wide.size()), key, 0);
  }
  std::vector<float> unpacked(std::int64_t numel) {
    std::vector<float> wide(numel);
    unpack(state(), dtype, squares, wide.data(), numel);
    return wide;
  }
  bool operator==(const Packed&) const = default;
};

}  // namespace zeropage::optim
