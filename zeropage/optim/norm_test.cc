#include "zeropage/optim/norm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/optim/convert.h"

namespace zeropage::optim {
namespace {

/// The definition: 16 partial sums, halved.
double defined_sum(const std::vector<float>& data, std::size_t begin, std::size_t numel) {
  double lanes[16] = {};
  for (std::size_t i = 0; i < numel; ++i) {
    const double value = data[begin + i];
    lanes[i % 16] += value * value;
  }
  for (int width = 8; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

std::vector<float> random_values(std::size_t numel) {
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  std::vector<float> values(numel);
  for (float& value : values) value = normal(random) * std::ldexp(1.0F, static_cast<int>(random() % 20) - 10);
  return values;
}

// Would catch a vector loop whose order of summation differs from the definition, and so from machine to machine.
TEST(SumOfSquares, EqualsTheDefinitionBitForBit) {
  const std::vector<float> values = random_values(10000);
  for (std::size_t numel = 0; numel <= 67; ++numel) {
    const std::size_t begin = numel % 7;
    EXPECT_EQ(sum_of_squares(values.data() + begin, DType::kFloat32, static_cast<std::int64_t>(numel)),
              defined_sum(values, begin, numel));
  }
  EXPECT_EQ(sum_of_squares(values.data(), DType::kFloat32, 10000), defined_sum(values, 0, 10000));
}

// Would catch 16-bit blocks that shift elements to other lanes, and fp64 that loses digits.
TEST(SumOfSquares, OtherTypesEqualTheirFp32Values) {
  const std::vector<float> values = random_values(6001);
  for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    std::vector<std::uint16_t> narrow(values.size());
    std::vector<float> wide(values.size());
    from_float32(values.data(), narrow.data(), dtype, 6001);
    to_float32(narrow.data(), dtype, wide.data(), 6001);
    EXPECT_EQ(sum_of_squares(narrow.data(), dtype, 6001), defined_sum(wide, 0, 6001));
    for (std::size_t numel = 0; numel <= 67; ++numel) {
      const std::size_t begin = numel % 7;
      EXPECT_EQ(sum_of_squares(narrow.data() + begin, dtype, static_cast<std::int64_t>(numel)),
                defined_sum(wide, begin, numel));
    }
  }
  const std::vector<double> doubles(values.begin(), values.end());
  EXPECT_EQ(sum_of_squares(doubles.data(), DType::kFloat64, 6001), defined_sum(values, 0, 6001));
  EXPECT_THROW(sum_of_squares(values.data(), DType::kOther, 4), UsageError);
}

// Would catch a missed overflow in the global check of the step: one infinity or NaN anywhere must be visible, and
// large finite values must not be.
TEST(SumOfSquares, OnlyBadElementsMakeItBad) {
  for (std::size_t bad = 0; bad < 37; ++bad) {
    std::vector<float> values(37, 3e38F);
    EXPECT_TRUE(std::isfinite(sum_of_squares(values.data(), DType::kFloat32, 37)));
    values[bad] = -INFINITY;
    EXPECT_TRUE(std::isinf(sum_of_squares(values.data(), DType::kFloat32, 37)));
    values[bad] = NAN;
    EXPECT_TRUE(std::isnan(sum_of_squares(values.data(), DType::kFloat32, 37)));
  }
}

// Would catch a norm that depends on the pieces in which a reduction writes a gradient.
TEST(SquareSum, DoesNotDependOnThePieces) {
  const std::vector<float> values = random_values(3 * SquareSum::kBlockNumel + 777);
  const auto numel = static_cast<std::int64_t>(values.size());
  double expected = 0.0;
  for (std::int64_t begin = 0; begin < numel; begin += SquareSum::kBlockNumel) {
    expected += defined_sum(values, begin, std::min(SquareSum::kBlockNumel, numel - begin));
  }
  EXPECT_EQ(sum_of_squares(values.data(), DType::kFloat32, numel), expected);
  std::mt19937 random(4);
  for (const std::int64_t longest : {3, 100, 5000, 200000}) {
    SquareSum squares;
    for (std::int64_t begin = 0; begin < numel;) {
      const std::int64_t count = std::min<std::int64_t>(numel - begin, 1 + random() % longest);
      squares.add(values.data() + begin, DType::kFloat32, count);
      begin += count;
    }
    EXPECT_EQ(squares.sum(), expected) << longest;
  }
}

TEST(ClipCoefficient, FollowsClipGradNorm) {
  EXPECT_EQ(clip_coefficient(0.5, 1.0), 1.0F);
  EXPECT_EQ(clip_coefficient(0.0, 1.0), 1.0F);
  EXPECT_FLOAT_EQ(clip_coefficient(4.0, 1.0), 1.0F / 4.000001F);
  EXPECT_EQ(clip_coefficient(4.0, 0.0), 1.0F) << "0 means no clipping";
  EXPECT_EQ(clip_coefficient(INFINITY, 1.0), 0.0F);
  EXPECT_TRUE(std::isnan(clip_coefficient(NAN, 1.0))) << "a NaN norm must not count as a small one";
}

}  // namespace
}  // namespace zeropage::optim
