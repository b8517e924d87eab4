#include "zeropage/optim/lamb.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/optim/test_state.h"

namespace zeropage::optim {
namespace {

using config::OptimizerKind;

Step step_with(config::OptimizerParams params, std::int64_t count = 3, float gradient_scale = 0.37F) {
  return {OptimizerKind::kLamb, params, count, gradient_scale};
}

std::vector<Step> steps_to_try() {
  const config::OptimizerParams decayed{.lr = 1e-2, .eps = 1e-6, .weight_decay = 0.1};
  config::OptimizerParams inside = decayed;
  inside.eps_inside_sqrt = true;
  config::OptimizerParams uncorrected = decayed;
  uncorrected.bias_correction = false;
  return {step_with({}, 1, 1.0F), step_with(decayed), step_with(inside), step_with(uncorrected)};
}

// Would catch vector code that differs from single elements in one bit, at any length, alignment and type, or writes
// past its end.
TEST(Lamb, ElementsDoNotDependOnTheirNeighbours) {
  constexpr double kRatio = 1.7;
  for (const Step& step : steps_to_try()) {
    for (DType gradient_dtype : kTestDtypes) {
      for (DType parameter_dtype : kTestDtypes) {
        for (int numel = 0; numel <= 67; ++numel) {
          const State initial(96, gradient_dtype, parameter_dtype, numel, true);
          for (int start : {0, 1, 15}) {
            State vectors = initial;
            State single = initial;
            lamb_moments(vectors.arrays(start), numel, step);
            lamb_apply(vectors.arrays(start), numel, step, kRatio);
            for (int i = start; i < start + numel; ++i) {
              lamb_moments(single.arrays(i), 1, step);
              lamb_apply(single.arrays(i), 1, step, kRatio);
            }
            ASSERT_TRUE(vectors == single) << dtype_name(gradient_dtype) << dtype_name(parameter_dtype) << numel;
          }
        }
      }
    }
  }
}

// Would catch a wrong formula: ten steps against the paper's, with the reference's limits, in double.
TEST(Lamb, FollowsTheFormulaInDouble) {
  constexpr int kNumel = 5000;  // more than a block
  for (Step step : steps_to_try()) {
    State state(kNumel, DType::kFloat32, DType::kFloat32, 3, true);
    std::vector<double> p(state.master.begin(), state.master.end()), m(kNumel), v(kNumel), u(kNumel);
    std::fill(state.first.begin(), state.first.end(), 0.0F);
    std::fill(state.second.begin(), state.second.end(), 0.0F);
    const auto* gradient = reinterpret_cast<const float*>(state.gradient.data());
    const auto& o = step.params;
    for (step.step = 1; step.step <= 10; ++step.step) {
      const LambSums sums = lamb_moments(state.arrays(), kNumel, step);
      const double ratio = lamb_ratio(sums, o);
      lamb_apply(state.arrays(), kNumel, step, ratio);
      const double count = static_cast<double>(step.step);
      const double first = o.bias_correction ? 1 - std::pow(o.beta1, count) : 1.0;
      const double second = o.bias_correction ? 1 - std::pow(o.beta2, count) : 1.0;
      double p_squares = 0.0, u_squares = 0.0;
      for (int i = 0; i < kNumel; ++i) {
        const double g = static_cast<double>(gradient[i]) * step.gradient_scale;
        m[i] = o.beta1 * m[i] + (1 - o.beta1) * g;
        v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;
        const double root = o.eps_inside_sqrt ? std::sqrt(v[i] / second + o.eps) : std::sqrt(v[i] / second) + o.eps;
        u[i] = m[i] / first / root + o.weight_decay * p[i];
        p_squares += p[i] * p[i];
        u_squares += u[i] * u[i];
      }
      const double expected = std::clamp(std::sqrt(p_squares / u_squares), o.min_coeff, o.max_coeff);
      ASSERT_NEAR(ratio, expected, 1e-6);
      for (int i = 0; i < kNumel; ++i) {
        p[i] -= o.lr * expected * u[i];
        ASSERT_NEAR(state.master[i], p[i], 3e-6) << "element " << i << " step " << step.step;
      }
    }
  }
}

TEST(Lamb, RatiosKeepTheirLimits) {
  const config::OptimizerParams params{.max_coeff = 2.0, .min_coeff = 0.5};
  EXPECT_EQ(lamb_ratio({9.0, 4.0}, params), 1.5);
  EXPECT_EQ(lamb_ratio({900.0, 4.0}, params), 2.0);
  EXPECT_EQ(lamb_ratio({0.01, 4.0}, params), 0.5);
  EXPECT_EQ(lamb_ratio({0.0, 4.0}, params), 1.0);
  EXPECT_EQ(lamb_ratio({9.0, 0.0}, params), 1.0);
}

TEST(Lamb, OnePassIsAnError) {
  float p = 0.0F, m = 0.0F, v = 0.0F, g = 0.0F;
  EXPECT_THROW(update({.master = &p, .states = {&m, &v}, .gradient = &g}, 1, step_with({})), UsageError);
}

}  // namespace
}  // namespace zeropage::optim
