#include "zeropage/optim/convert.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "zeropage/base/error.h"

namespace zeropage::optim {
namespace {

/// A 16-bit type by its parameters, and reference conversions in double.
struct Format {
  DType dtype;
  int mantissa_bits;
  int exponent_min;
  int exponent_max;
  std::uint16_t (*narrow)(float);
  float (*widen)(std::uint16_t);

  double value(std::uint16_t bits) const {
    const int mantissa = bits & ((1 << mantissa_bits) - 1);
    const int exponent = (bits & 0x7fff) >> mantissa_bits;
    const double sign = bits & 0x8000 ? -1.0 : 1.0;
    if (exponent == exponent_max - exponent_min + 2) return mantissa ? NAN : sign * INFINITY;
    const int implicit = exponent == 0 ? 0 : 1 << mantissa_bits;
    return sign * std::ldexp(implicit + mantissa, std::max(exponent, 1) - 1 + exponent_min - mantissa_bits);
  }

  double rounded(double x) const {
    if (x == 0.0 || !std::isfinite(x)) return x;
    const double ulp = std::ldexp(1.0, std::max(std::ilogb(x), exponent_min) - mantissa_bits);
    const double near = std::nearbyint(x / ulp) * ulp;
    return std::abs(near) >= std::ldexp(1.0, exponent_max + 1) ? std::copysign(INFINITY, x) : near;
  }
};

const Format kFormats[] = {{DType::kBFloat16, 7, -126, 127, bfloat16_from_float, float_from_bfloat16},
                           {DType::kFloat16, 10, -14, 15, float16_from_float, float_from_float16}};

void expect_same(double got, double expected, double input) {
  if (std::isnan(expected)) {
    EXPECT_TRUE(std::isnan(got)) << input;
  } else {
    EXPECT_EQ(got, expected) << input;
    EXPECT_EQ(std::signbit(got), std::signbit(expected)) << input;
  }
}

// Would catch a wrong exponent, a lost subnormal, an infinity read as a number: all 65,536 values.
TEST(Convert, WideningIsExactForEveryValue) {
  for (const Format& format : kFormats) {
    for (int bits = 0; bits < 65536 && !HasFailure(); ++bits) {
      expect_same(format.widen(static_cast<std::uint16_t>(bits)), format.value(static_cast<std::uint16_t>(bits)), bits);
    }
  }
}

// Would catch every rounding mistake: each value, the midpoint to the next, and their fp32 neighbours.
TEST(Convert, NarrowingIsRightAroundEveryValueAndMidpoint) {
  for (const Format& format : kFormats) {
    for (int bits = 0; bits < 65535 && !HasFailure(); ++bits) {
      const double here = format.value(static_cast<std::uint16_t>(bits));
      const double next = format.value(static_cast<std::uint16_t>(bits + 1));
      for (double point : {here, (here + next) / 2}) {
        const float x = static_cast<float>(point);
        for (float input : {x, std::nextafter(x, INFINITY), std::nextafter(x, -INFINITY)}) {
          expect_same(format.widen(format.narrow(input)), format.rounded(input), input);
        }
      }
    }
  }
}

TEST(Convert, NarrowingIsRightForRandomBits) {
  std::mt19937 random(3);
  for (const Format& format : kFormats) {
    for (int i = 0; i < 300000 && !HasFailure(); ++i) {
      const float input = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
      expect_same(format.widen(format.narrow(input)), format.rounded(input), input);
    }
  }
}

// Would catch a NaN that becomes infinity because its payload is in the dropped bits.
TEST(Convert, NanStaysNan) {
  for (const Format& format : kFormats) {
    for (std::uint32_t bits : {0x7f800001U, 0xff800001U, 0x7fffffffU, 0x7fc00000U, 0xffffffffU}) {
      EXPECT_TRUE(std::isnan(format.widen(format.narrow(std::bit_cast<float>(bits))))) << std::hex << bits;
    }
  }
}

// Would catch a vector loop that differs from the scalar function, or writes past its end, at any length and alignment.
TEST(Convert, ArraysEqualScalarsForAllLengthsAndMisalignments) {
  std::mt19937 random(5);
  std::vector<float> wide(80), back(80);
  std::vector<std::uint16_t> narrow(80);
  for (float& x : wide) x = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
  for (const Format& format : kFormats) {
    for (int start = 0; start < 9; ++start) {
      for (int numel = 0; numel <= 67; ++numel) {
        std::fill(narrow.begin(), narrow.end(), std::uint16_t{0xabcd});
        std::fill(back.begin(), back.end(), -7.0F);
        from_float32(wide.data() + start, narrow.data() + start, format.dtype, numel);
        to_float32(narrow.data() + start, format.dtype, back.data() + start, numel);
        for (int i = 0; i < 80; ++i) {
          const bool inside = i >= start && i < start + numel;
          ASSERT_EQ(narrow[i], inside ? format.narrow(wide[i]) : 0xabcd) << start << " " << numel << " " << i;
          const float expected = inside ? format.widen(narrow[i]) : -7.0F;
          ASSERT_EQ(std::bit_cast<std::uint32_t>(back[i]), std::bit_cast<std::uint32_t>(expected));
        }
      }
    }
  }
}

// Would catch stochastic rounding beyond the next value, of values that need no rounding, or of infinity to NaN.
TEST(Convert, StochasticRoundingTakesOneOfTheTwoNeighbours) {
  std::mt19937 random(6);
  constexpr int kNumel = 200'000;
  std::vector<float> wide(kNumel);
  for (float& x : wide) x = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
  const float corners[] = {0.0F,     -0.0F,    INFINITY, -INFINITY, NAN,      1.0F,
                           65504.0F, 65519.0F, 65536.0F, 0x1p-24F,  0x1p-25F, 0x1p-14F};
  std::copy(std::begin(corners), std::end(corners), wide.begin());
  for (const Format& format : kFormats) {
    std::vector<std::uint16_t> narrow(kNumel);
    round_stochastically(wide.data(), narrow.data(), format.dtype, kNumel, 3, 0);
    for (int i = 0; i < kNumel; ++i) {
      const std::uint16_t nearest = format.narrow(wide[i]);
      if (std::isnan(wide[i])) {
        ASSERT_TRUE(std::isnan(format.widen(narrow[i])));
      } else if (format.widen(nearest) == wide[i]) {
        ASSERT_EQ(narrow[i], nearest) << wide[i];
      } else {
        ASSERT_LE(std::abs(static_cast<int>(narrow[i]) - static_cast<int>(nearest)), 1) << wide[i];
        const bool on_one_side = (format.widen(narrow[i]) > wide[i]) == (format.widen(nearest) > wide[i]);
        ASSERT_TRUE(!on_one_side || narrow[i] == nearest) << wide[i];
      }
    }
  }
}

// Would catch random bits that favour a direction: the mean of many roundings of a value is that value, within four
// deviations.
TEST(Convert, StochasticRoundingIsRightOnAverage) {
  constexpr int kNumel = 1 << 16;
  for (const Format& format : kFormats) {
    for (const float value : {1.0F + 0x1p-13F, 1.0F + 0x1.8p-9F, -3.1415927F, 0x1.8p-25F, 0x1.34p-20F}) {
      const std::vector<float> wide(kNumel, value);
      std::vector<std::uint16_t> narrow(kNumel);
      double sum = 0.0, least = INFINITY, most = -INFINITY;
      for (std::uint64_t key : {1ULL, 2ULL, 0x500000001ULL, 0x500000002ULL}) {
        round_stochastically(wide.data(), narrow.data(), format.dtype, kNumel, key, 0);
        for (std::uint16_t bits : narrow) {
          const double rounded = format.widen(bits);
          sum += rounded;
          least = std::min(least, rounded);
          most = std::max(most, rounded);
        }
      }
      const double deviation = (most - least) / 2 / std::sqrt(4.0 * kNumel);
      EXPECT_NEAR(sum / (4 * kNumel), value, 4 * deviation) << dtype_name(format.dtype) << " " << value;
    }
  }
}

// Would catch rounding that depends on where a range begins: stages cut the same parameter at different places.
TEST(Convert, StochasticRoundingDependsOnKeyAndIndexAlone) {
  std::vector<float> wide(5000);
  for (std::size_t i = 0; i < wide.size(); ++i) wide[i] = 1.0F + 1e-3F * static_cast<float>(i);
  std::vector<std::uint16_t> whole(wide.size()), parts(wide.size()), other(wide.size());
  const auto numel = static_cast<std::int64_t>(wide.size());
  constexpr std::int64_t kFirst = (std::int64_t{1} << 32) - 2500;  // counts beyond 32 bits on the way
  round_stochastically(wide.data(), whole.data(), DType::kBFloat16, numel, 9, kFirst);
  round_stochastically(wide.data(), other.data(), DType::kBFloat16, numel, 10, kFirst);
  EXPECT_NE(whole, other);
  for (std::int64_t begin = 0; begin < numel; begin += 333) {
    const std::int64_t count = std::min<std::int64_t>(333, numel - begin);
    round_stochastically(wide.data() + begin, parts.data() + begin, DType::kBFloat16, count, 9, kFirst + begin);
  }
  EXPECT_EQ(whole, parts);
}

TEST(Convert, Fp32IsCopiedAndOtherTypesAreErrors) {
  float from = 1.5F, to = 0.0F;
  to_float32(&from, DType::kFloat32, &to, 1);
  EXPECT_EQ(to, 1.5F);
  from = 2.5F;
  from_float32(&from, &to, DType::kFloat32, 1);
  EXPECT_EQ(to, 2.5F);
  EXPECT_THROW(to_float32(&from, DType::kFloat64, &to, 1), UsageError);
  EXPECT_THROW(from_float32(&from, &to, DType::kOther, 1), UsageError);
}

}  // namespace
}  // namespace zeropage::optim
