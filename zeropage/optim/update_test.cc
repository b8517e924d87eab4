#include "zeropage/optim/update.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/optim/convert.h"
#include "zeropage/optim/rules.h"
#include "zeropage/optim/test_state.h"

namespace zeropage::optim {
namespace {

using config::OptimizerKind;
using config::OptimizerParams;

/// Does the same as `update` with one instruction set.
void update_by(const VectorKernel& kernel, const Arrays& arrays, std::int64_t numel, const Step& step) {
  const std::int64_t done = kernel.update(arrays, numel, step);
  EXPECT_TRUE(done <= numel && numel - done < 16);
  update_reference(arrays.from(done), numel - done, step);
}

// Would catch a vector loop of any instruction set that differs from the scalar reference in one bit, at any length,
// alignment and type. The widest vectors have 16 elements: lengths reach four of them and three more.
TEST(Update, EqualsTheScalarTwinBitForBit) {
  const auto kernels = vector_kernels();
  for (const Step& step : one_pass_steps()) {
    for (DType gradient_dtype : kTestDtypes) {
      for (DType parameter_dtype : kTestDtypes) {
        for (int numel = 0; numel <= 67; ++numel) {
          const State initial(96, gradient_dtype, parameter_dtype, numel);
          for (int start : {0, 1, 2, 7, 15, 16}) {
            State slow = initial;
            update_reference(slow.arrays(start), numel, step);
            for (const auto& kernel : kernels) {
              State fast = initial;
              update_by(kernel, fast.arrays(start), numel, step);
              ASSERT_TRUE(fast == slow) << kernel.name << static_cast<int>(step.kind) << dtype_name(gradient_dtype)
                                        << dtype_name(parameter_dtype) << numel << " from " << start;
            }
          }
        }
      }
    }
  }
}

// The same without a master: would catch parameters that are widened or rounded differently at some length, alignment
// or type.
TEST(Update, EqualsTheScalarTwinWithoutMasters) {
  for (Step step : one_pass_steps()) {
    step.rounding_key = 5;
    for (DType gradient_dtype : kTestDtypes) {
      for (DType parameter_dtype : {DType::kBFloat16, DType::kFloat16}) {
        State initial(96, gradient_dtype, parameter_dtype, 8);
        from_float32(initial.master.data(), initial.parameter.data(), parameter_dtype, 96);
        for (int numel = 0; numel <= 67; ++numel) {
          for (int start : {0, 1, 7}) {
            State fast = initial, slow = initial;
            for (State* state : {&fast, &slow}) {
              Arrays arrays = state->arrays(start);
              arrays.master = nullptr;
              (state == &fast ? update : update_reference)(arrays, numel, step);
            }
            ASSERT_TRUE(fast == slow) << static_cast<int>(step.kind) << dtype_name(gradient_dtype)
                                      << dtype_name(parameter_dtype) << numel << " from " << start;
          }
        }
      }
    }
  }
}

// Would catch errors in special cases of rounding and widening (ties, subnormals, infinity, NaN): all 65536 gradients,
// and masters of every exponent.
TEST(Update, EqualsTheTwinForEveryKindOfNumber) {
  constexpr int kNumel = 1 << 16;
  const Step step{OptimizerKind::kSgd, {.lr = 0.25}};
  for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    State fast(kNumel, dtype, dtype, 1);
    for (int i = 0; i < kNumel; ++i) {
      const auto half = static_cast<std::uint16_t>(i);
      std::memcpy(fast.gradient.data() + 2 * i, &half, 2);
      const std::uint32_t bits = static_cast<std::uint32_t>(i) << 16 | (i % 3 == 0   ? 0x8000U
                                                                        : i % 5 == 0 ? 0xffffU
                                                                                     : 0x1000U);
      fast.master[i] = std::bit_cast<float>(i % 2 == 0 ? bits : bits ^ 0x00055000U);
    }
    // For an operation on two NaNs, instruction sets differ in which one they keep.
    for (int i = 0; i < kNumel; ++i) {
      if (std::isnan(fast.master[i])) std::memset(fast.gradient.data() + 2 * i, 0, 2);
    }
    State slow = fast;
    update_reference(slow.arrays(), kNumel, step);
    for (const auto& kernel : vector_kernels()) {
      State vectors = fast;
      update_by(kernel, vectors.arrays(), kNumel, step);
      ASSERT_TRUE(vectors == slow) << kernel.name << dtype_name(dtype);
    }
  }
}

// Would catch bits that depend on where a range is split: stages split the same parameter at different places.
TEST(Update, DoesNotDependOnHowARangeIsSplit) {
  const std::int64_t numel = 5000;
  for (const Step& step : one_pass_steps()) {
    State whole(numel, DType::kBFloat16, DType::kBFloat16, 1);
    State parts = whole;
    update(whole.arrays(), numel, step);
    std::mt19937 random(2);
    for (std::int64_t begin = 0; begin < numel;) {
      const std::int64_t count = std::min<std::int64_t>(numel - begin, 1 + random() % 1500);
      update(parts.arrays(begin), count, step);
      begin += count;
    }
    ASSERT_TRUE(whole == parts) << static_cast<int>(step.kind);
  }
}

// Would catch parameters without masters whose update is not that of the widened value, or depends on where a range is
// split.
TEST(Update, ParametersCanBeTheirOwnMasters) {
  const std::int64_t numel = 5000;
  for (Step step : one_pass_steps()) {
    step.rounding_key = 77;
    for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      State whole(numel, DType::kFloat32, dtype, 1);
      from_float32(whole.master.data(), whole.parameter.data(), dtype, numel);
      const auto own = [](State& state, std::int64_t begin) {
        Arrays arrays = state.arrays();
        arrays.master = nullptr;
        return arrays.from(begin);
      };
      State parts = whole, twin = whole, wide = whole;
      update(own(whole, 0), numel, step);
      update_reference(own(twin, 0), numel, step);
      for (std::int64_t begin = 0; begin < numel; begin += 777) {
        update(own(parts, begin), std::min<std::int64_t>(777, numel - begin), step);
      }
      ASSERT_TRUE(whole == twin && whole == parts) << static_cast<int>(step.kind) << dtype_name(dtype);
      to_float32(wide.parameter.data(), dtype, wide.master.data(), numel);
      Arrays precise = wide.arrays();
      precise.parameter_dtype = DType::kFloat32;
      update(precise, numel, step);
      std::vector<float> rounded(numel);
      to_float32(whole.parameter.data(), dtype, rounded.data(), numel);
      for (std::int64_t i = 0; i < numel; ++i) {
        ASSERT_NEAR(rounded[i], wide.master[i], std::max(1e-4, std::abs(wide.master[i]) / 128.0));
      }
    }
  }
}

/// The textbook formulas in double.
struct Textbook {
  double p, first = 0.0, second = 0.0;

  void apply(const Step& step, double gradient) {
    const OptimizerParams& o = step.params;
    const double count = static_cast<double>(step.step);
    double g = gradient * step.gradient_scale;
    const bool decoupled = step.kind == OptimizerKind::kLion || step.kind == OptimizerKind::kAdamW ||
                           (step.kind == OptimizerKind::kAdam && o.decoupled_decay);
    if (!decoupled) g += o.weight_decay * p;
    if (decoupled) p -= o.lr * o.weight_decay * p;
    if (step.kind == OptimizerKind::kLion) {
      const double direction = o.beta1 * first + (1 - o.beta1) * g;
      p -= o.lr * (direction > 0 ? 1 : direction < 0 ? -1 : 0);
      first = o.beta2 * first + (1 - o.beta2) * g;
    } else if (step.kind == OptimizerKind::kAdagrad) {
      first += g * g;
      p -= o.lr / (1 + (count - 1) * o.lr_decay) * g / (std::sqrt(first) + o.eps);
    } else if (step.kind == OptimizerKind::kSgd) {
      first = step.step == 1 ? g : o.momentum * first + (1 - o.dampening) * g;
      p -= o.lr * (o.nesterov ? g + o.momentum * first : o.momentum != 0 ? first : g);
    } else {
      const double correction1 = o.bias_correction ? 1 - std::pow(o.beta1, count) : 1;
      const double correction2 = o.bias_correction ? 1 - std::pow(o.beta2, count) : 1;
      first = o.beta1 * first + (1 - o.beta1) * g;
      second = o.beta2 * second + (1 - o.beta2) * g * g;
      p -= o.lr * (first / correction1) / (std::sqrt(second / correction2) + o.eps);
    }
  }
};

// Would catch a wrong formula, which the scalar reference would share: twenty steps against the textbook.
TEST(Update, FollowsTheFormulasInDouble) {
  for (Step step : one_pass_steps()) {
    State state(64, DType::kFloat32, DType::kFloat32, 11);
    std::vector<Textbook> textbook(state.master.begin(), state.master.end());
    std::fill(state.first.begin(), state.first.end(), 0.0F);
    std::fill(state.second.begin(), state.second.end(), 0.0F);
    const float* gradient = reinterpret_cast<const float*>(state.gradient.data());
    for (step.step = 1; step.step <= 20; ++step.step) {
      update(state.arrays(), 64, step);
      for (int i = 0; i < 64; ++i) {
        textbook[i].apply(step, gradient[i]);
        ASSERT_NEAR(state.master[i], textbook[i].p, 3e-6 * std::max(1.0, std::abs(textbook[i].p)))
            << static_cast<int>(step.kind) << " element " << i << " step " << step.step;
      }
    }
  }
}

// The first step of Adam with a constant gradient moves every parameter by lr: computed by hand.
TEST(Update, FirstStepOfAdamByHand) {
  float p = 1.0F, m = 0.0F, v = 0.0F;
  const float g = 3.0F;
  const Arrays arrays{.master = &p, .states = {&m, &v}, .gradient = &g};
  update(arrays, 1, {OptimizerKind::kAdamW, {.lr = 0.25, .eps = 0.0, .weight_decay = 0.5}});
  EXPECT_FLOAT_EQ(p, 1.0F * (1 - 0.25F * 0.5F) - 0.25F);
  EXPECT_FLOAT_EQ(m, 0.3F);
  EXPECT_FLOAT_EQ(v, 0.009F);
}

// Would catch a 16-bit parameter that is not the rounded master, and a master that is rounded.
TEST(Update, ParameterIsTheRoundedMaster) {
  State state(100, DType::kFloat32, DType::kBFloat16, 5);
  update(state.arrays(), 100, {OptimizerKind::kAdamW, {.lr = 1e-4}});
  int differing = 0;
  for (int i = 0; i < 100; ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, state.parameter.data() + 2 * i, 2);
    ASSERT_EQ(bits, bfloat16_from_float(state.master[i]));
    differing += float_from_bfloat16(bits) != state.master[i];
  }
  EXPECT_GT(differing, 50);
}

// Would catch padding after a shard's last parameter that does not stay zero.
TEST(Update, ZerosStayZero) {
  for (const Step& step : one_pass_steps()) {
    std::vector<float> p(40), first(40), second(40), g(40);
    update({.master = p.data(), .states = {first.data(), second.data()}, .gradient = g.data()}, 40, step);
    for (const auto* values : {&p, &first, &second}) EXPECT_EQ(*values, g) << static_cast<int>(step.kind);
  }
}

TEST(Update, WrongTypesStepsAndStatesAreErrors) {
  float p = 0.0F, m = 0.0F, v = 0.0F, g = 0.0F;
  const Arrays good{.master = &p, .states = {&m, &v}, .gradient = &g};
  const auto fails = [](Arrays arrays, const Step& step) { EXPECT_THROW(update(arrays, 1, step), UsageError); };
  Arrays arrays = good;
  arrays.gradient_dtype = DType::kFloat64;
  fails(arrays, {});
  arrays = good;
  arrays.parameter_dtype = DType::kFloat64;
  fails(arrays, {});
  fails(good, {.step = 0});
  arrays = good;
  arrays.master = nullptr;  // an fp32 parameter is its master
  fails(arrays, {});
  arrays = good;
  arrays.states = {};
  fails(arrays, {});
  fails(arrays, {OptimizerKind::kSgd, {.momentum = 0.9}});
  update(arrays, 1, {OptimizerKind::kSgd, {}});
}

}  // namespace
}  // namespace zeropage::optim
