#include "zeropage/optim/adam.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/optim/convert.h"

namespace zeropage::optim {
namespace {

/// The arrays of one update. Everything past what is updated must stay as it was.
struct State {
  std::vector<float> master, exp_avg, exp_avg_sq;
  std::vector<char> gradient, parameter;
  DType gradient_dtype, parameter_dtype;

  State(std::int64_t numel, DType gradient_dtype, DType parameter_dtype, unsigned seed)
      : master(numel),
        exp_avg(numel),
        exp_avg_sq(numel),
        gradient(numel * 4),
        parameter(numel * 4, 0x55),
        gradient_dtype(gradient_dtype),
        parameter_dtype(parameter_dtype) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> wide(numel);
    for (std::int64_t i = 0; i < numel; ++i) {
      master[i] = normal(random);
      exp_avg[i] = 0.1F * normal(random);
      exp_avg_sq[i] = 0.01F * std::abs(normal(random));
      wide[i] = normal(random);
    }
    from_float32(wide.data(), gradient.data(), gradient_dtype, numel);
  }

  template <typename Update>
  void apply(Update update, std::int64_t begin, std::int64_t numel, const AdamStep& step) {
    update(master.data() + begin, exp_avg.data() + begin, exp_avg_sq.data() + begin,
           gradient.data() + begin * element_bytes(gradient_dtype), gradient_dtype,
           parameter.data() + begin * element_bytes(parameter_dtype), parameter_dtype, numel, step);
  }

  bool operator==(const State& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    return same(master, other.master) && same(exp_avg, other.exp_avg) && same(exp_avg_sq, other.exp_avg_sq) &&
           parameter == other.parameter;
  }
};

std::vector<AdamStep> steps_to_try() {
  AdamStep plain;
  AdamStep decayed{.lr = 1e-2, .weight_decay = 0.1, .step = 7, .gradient_scale = 0.37F};
  AdamStep l2 = decayed;
  l2.decoupled_decay = false;
  AdamStep uncorrected = decayed;
  uncorrected.bias_correction = false;
  AdamStep low_beta{.beta1 = 0.3, .beta2 = 0.5, .eps = 1e-3, .step = 2};
  return {plain, decayed, l2, uncorrected, low_beta};
}

// Would catch a vector loop that differs from the scalar twin in one bit, at any length, alignment and type.
TEST(Adam, EqualsTheScalarTwinBitForBit) {
  const DType dtypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  for (const AdamStep& step : steps_to_try()) {
    for (DType gradient_dtype : dtypes) {
      for (DType parameter_dtype : dtypes) {
        for (int numel = 0; numel <= 67; ++numel) {
          const int start = numel % 9;
          State fast(80, gradient_dtype, parameter_dtype, numel);
          State slow = fast;
          fast.apply(adam_step, start, numel, step);
          slow.apply(adam_step_reference, start, numel, step);
          ASSERT_TRUE(fast == slow) << dtype_name(gradient_dtype) << dtype_name(parameter_dtype) << numel;
        }
      }
    }
  }
}

// Stages split the same parameter at different places: the bits must not depend on where, across block borders too.
TEST(Adam, DoesNotDependOnHowARangeIsSplit) {
  const std::int64_t numel = 5000;
  const AdamStep step{.weight_decay = 0.01, .step = 3, .gradient_scale = 0.5F};
  State whole(numel, DType::kBFloat16, DType::kBFloat16, 1);
  State parts = whole;
  State slow = whole;
  whole.apply(adam_step, 0, numel, step);
  slow.apply(adam_step_reference, 0, numel, step);
  EXPECT_TRUE(whole == slow);
  std::mt19937 random(2);
  for (std::int64_t begin = 0; begin < numel;) {
    const std::int64_t count = std::min<std::int64_t>(numel - begin, 1 + random() % 1500);
    parts.apply(adam_step, begin, count, step);
    begin += count;
  }
  EXPECT_TRUE(whole == parts);
}

// Would catch a wrong formula, which the twin shares: twenty steps against the textbook in double.
TEST(Adam, FollowsTheFormulaInDouble) {
  for (AdamStep step : steps_to_try()) {
    State state(64, DType::kFloat32, DType::kFloat32, 11);
    std::vector<double> p(state.master.begin(), state.master.end()), m(64, 0.0), v(64, 0.0);
    std::fill(state.exp_avg.begin(), state.exp_avg.end(), 0.0F);
    std::fill(state.exp_avg_sq.begin(), state.exp_avg_sq.end(), 0.0F);
    const float* gradient = reinterpret_cast<const float*>(state.gradient.data());
    for (step.step = 1; step.step <= 20; ++step.step) {
      const double count = static_cast<double>(step.step);
      const double correction1 = step.bias_correction ? 1 - std::pow(step.beta1, count) : 1;
      const double correction2 = step.bias_correction ? 1 - std::pow(step.beta2, count) : 1;
      state.apply(adam_step, 0, 64, step);
      for (int i = 0; i < 64; ++i) {
        double g = static_cast<double>(gradient[i]) * step.gradient_scale;
        if (step.decoupled_decay) p[i] -= step.lr * step.weight_decay * p[i];
        if (!step.decoupled_decay) g += step.weight_decay * p[i];
        m[i] = step.beta1 * m[i] + (1 - step.beta1) * g;
        v[i] = step.beta2 * v[i] + (1 - step.beta2) * g * g;
        p[i] -= step.lr * (m[i] / correction1) / (std::sqrt(v[i] / correction2) + step.eps);
        ASSERT_NEAR(state.master[i], p[i], 3e-6) << i << " step " << step.step;
      }
    }
  }
}

// The first step of Adam with a constant gradient moves every parameter by lr: computed by hand.
TEST(Adam, FirstStepByHand) {
  float p = 1.0F, m = 0.0F, v = 0.0F;
  const float g = 3.0F;
  adam_step(&p, &m, &v, &g, DType::kFloat32, nullptr, DType::kFloat32, 1,
            {.lr = 0.25, .eps = 0.0, .weight_decay = 0.5});
  EXPECT_FLOAT_EQ(p, 1.0F * (1 - 0.25F * 0.5F) - 0.25F);
  EXPECT_FLOAT_EQ(m, 0.3F);
  EXPECT_FLOAT_EQ(v, 0.009F);
}

// 16-bit parameters are the rounded master, and the master keeps what rounding drops.
TEST(Adam, ParameterIsTheRoundedMaster) {
  State state(100, DType::kFloat32, DType::kBFloat16, 5);
  state.apply(adam_step, 0, 100, {.lr = 1e-4});
  int differing = 0;
  for (int i = 0; i < 100; ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, state.parameter.data() + 2 * i, 2);
    ASSERT_EQ(bits, bfloat16_from_float(state.master[i]));
    differing += float_from_bfloat16(bits) != state.master[i];
  }
  EXPECT_GT(differing, 50);
}

// Padding behind a shard's last parameter is zeros and must stay so.
TEST(Adam, ZeroGradientAndStateStayZero) {
  float p = 0.0F, m = 0.0F, v = 0.0F;
  const float g = 0.0F;
  adam_step(&p, &m, &v, &g, DType::kFloat32, nullptr, DType::kFloat32, 1, {.weight_decay = 0.1});
  EXPECT_EQ(p, 0.0F);
  EXPECT_EQ(m, 0.0F);
  EXPECT_EQ(v, 0.0F);
}

TEST(Adam, WrongTypesAndStepsAreErrors) {
  float p = 0.0F, m = 0.0F, v = 0.0F;
  double g = 0.0;
  EXPECT_THROW(adam_step(&p, &m, &v, &g, DType::kFloat64, nullptr, DType::kFloat32, 1, {}), UsageError);
  EXPECT_THROW(adam_step(&p, &m, &v, &p, DType::kFloat32, &g, DType::kFloat64, 1, {}), UsageError);
  EXPECT_THROW(adam_step(&p, &m, &v, &p, DType::kFloat32, nullptr, DType::kFloat32, 1, {.step = 0}), UsageError);
}

}  // namespace
}  // namespace zeropage::optim
