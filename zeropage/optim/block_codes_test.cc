#include "zeropage/optim/block_codes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/optim/convert.h"

namespace zeropage::optim {
namespace {

constexpr BlockCode kCodes[] = {BlockCode::kInt8, BlockCode::kInt4};
constexpr DType kTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
constexpr std::int64_t kLengths[] = {1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300, 1000, 5003};

double levels_of(BlockCode code) { return code == BlockCode::kInt8 ? 127.0 : 7.0; }

/// Values of one type, also as fp32.
struct Values {
  DType dtype = DType::kFloat32;
  std::vector<std::byte> bytes;

  Values(DType dtype, std::int64_t numel)
      : dtype(dtype), bytes(static_cast<std::size_t>(numel * element_bytes(dtype))) {}
  Values(DType dtype, const std::vector<float>& wide) : Values(dtype, static_cast<std::int64_t>(wide.size())) {
    from_float32(wide.data(), bytes.data(), dtype, static_cast<std::int64_t>(wide.size()));
  }
  std::int64_t numel() const { return static_cast<std::int64_t>(bytes.size()) / element_bytes(dtype); }
  std::vector<float> wide() const {
    std::vector<float> values(static_cast<std::size_t>(numel()));
    to_float32(bytes.data(), dtype, values.data(), numel());
    return values;
  }
};

/// Blocks of many magnitudes, with zeros and ties among them.
std::vector<float> spread_values(std::int64_t numel, unsigned seed, int exponents) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(numel));
  int exponent = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i % 50 == 0) exponent = static_cast<int>(random() % static_cast<unsigned>(2 * exponents)) - exponents;
    values[i] = random() % 9 == 0 ? 0.0F : std::ldexp(normal(random), exponent);
  }
  return values;
}

std::vector<std::byte> encoded(const CodedParts& parts, const Values& values) {
  std::vector<std::byte> coded(static_cast<std::size_t>(parts.total_bytes()));
  encode_blocks(parts, values.bytes.data(), coded.data());
  return coded;
}

std::vector<float> there_and_back(BlockCode code, const Values& values) {
  const CodedParts parts{code, values.dtype, values.numel(), 1};
  Values back(values.dtype, values.numel());
  decode_blocks(parts, encoded(parts, values).data(), back.bytes.data());
  return back.wide();
}

/// The definition, one element at a time, with the library's division and rounding instead of tricks with bits.
std::vector<std::byte> coded_by_definition(const CodedParts& parts, const Values& values) {
  std::vector<std::byte> coded(static_cast<std::size_t>(parts.total_bytes()));
  const auto wide = values.wide();
  const std::int64_t block_numel = block_numel_of(parts.code);
  const std::int64_t blocks = coded_blocks(parts.code, parts.numel);
  for (std::int64_t part = 0; part < parts.count; ++part) {
    std::byte* const at = coded.data() + part * parts.part_bytes();
    for (std::int64_t block = 0; block < blocks; ++block) {
      const auto value = [&](std::int64_t i) {
        const std::int64_t index = block * block_numel + i;
        return index < parts.numel ? wide[static_cast<std::size_t>(part * parts.numel + index)] : 0.0F;
      };
      float largest = 0.0F;
      for (std::int64_t i = 0; i < block_numel; ++i) largest = std::max(largest, std::abs(value(i)));
      float scale = largest / static_cast<float>(levels_of(parts.code));
      if (scale < std::numeric_limits<float>::min()) scale = 0.0F;
      std::memcpy(at + block * 4, &scale, 4);
      const auto integer = [&](std::int64_t i) {
        return scale == 0.0F ? 0 : static_cast<int>(std::nearbyint(value(i) * (1.0F / scale)));
      };
      std::byte* const codes = at + blocks * 4 + block * block_bytes_of(parts.code);
      for (std::int64_t i = 0; i < block_bytes_of(parts.code); ++i) {
        const int byte = parts.code == BlockCode::kInt8 ? integer(i) : (integer(i) & 15) | (integer(i + 64) & 15) << 4;
        codes[i] = static_cast<std::byte>(byte & 255);
      }
    }
  }
  return coded;
}

// Catches vectorized loops that differ from the definition in any bit: rounding of ties, blocks that are not full,
// parts that share a block, bytes of padding that are not zero.
TEST(BlockCodes, HaveTheBytesOfTheDefinition) {
  for (const BlockCode code : kCodes) {
    for (const DType dtype : kTypes) {
      for (const std::int64_t numel : kLengths) {
        for (const std::int64_t count : {1, 3}) {
          const CodedParts parts{code, dtype, numel, count};
          const Values values(dtype, spread_values(numel * count, static_cast<unsigned>(numel), 14));
          EXPECT_EQ(encoded(parts, values), coded_by_definition(parts, values))
              << numel << " of " << dtype_name(dtype) << ", " << levels_of(code) << " levels";
        }
      }
    }
  }
}

// Catches an error of more than half a step: of a block's largest magnitude / 127, or / 7.
TEST(BlockCodes, AreWrongByAtMostHalfAStep) {
  for (const BlockCode code : kCodes) {
    for (const DType dtype : kTypes) {
      const Values values(dtype, spread_values(20000, 3, dtype == DType::kFloat16 ? 10 : 100));
      const auto wide = values.wide();
      const auto back = there_and_back(code, values);
      const double type_step = dtype == DType::kFloat32 ? 0x1p-22 : dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
      const auto block_numel = static_cast<std::size_t>(block_numel_of(code));
      for (std::size_t begin = 0; begin < wide.size(); begin += block_numel) {
        const std::size_t end = std::min(begin + block_numel, wide.size());
        double largest = 0.0;
        for (std::size_t i = begin; i < end; ++i) largest = std::max<double>(largest, std::abs(wide[i]));
        const double half_step = largest / levels_of(code) / 2;
        for (std::size_t i = begin; i < end; ++i) {
          const double rounding = type_step * std::abs(back[i]) + (dtype == DType::kFloat16 ? 0x1p-25 : 0.0);
          ASSERT_LE(std::abs(static_cast<double>(back[i]) - wide[i]), half_step * (1 + 1e-4) + rounding) << i;
        }
      }
    }
  }
}

// Catches an infinity or NaN that is lost, or that affects more than its own block.
TEST(BlockCodes, KeepWhatIsNotFinite) {
  for (const BlockCode code : kCodes) {
    for (const DType dtype : kTypes) {
      for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                              std::numeric_limits<float>::quiet_NaN()}) {
        std::vector<float> values(1000, 0.5F);
        const auto block_numel = block_numel_of(code);
        values[static_cast<std::size_t>(block_numel) + 5] = bad;
        const auto back = there_and_back(code, Values(dtype, values));
        for (std::int64_t i = 0; i < 1000; ++i) {
          EXPECT_EQ(std::isnan(back[static_cast<std::size_t>(i)]), i / block_numel == 1) << i;
        }
      }
    }
  }
}

// Catches a division by the scale of a block of zeros, and scales that leave the range of fp32 at either end.
TEST(BlockCodes, HaveAnAnswerForEveryMagnitude) {
  for (const BlockCode code : kCodes) {
    for (const float value : {0.0F, -0.0F, 1e-45F, 1e-40F, -3e-38F}) {
      for (const float back : there_and_back(code, Values(DType::kFloat32, std::vector<float>(300, value)))) {
        EXPECT_LE(std::abs(back - value), 127 * std::numeric_limits<float>::min());
        EXPECT_FALSE(std::abs(value) < 1e-39F && std::signbit(back));
      }
    }
    for (int exponent = -110; exponent <= 127; ++exponent) {
      for (const float digits : {1.0F, 1.3F, 2.0F - 0x1p-23F}) {
        const float value = std::ldexp(digits, exponent);
        for (const float back : there_and_back(code, Values(DType::kFloat32, std::vector<float>(3, -value)))) {
          EXPECT_NEAR(back / -value, 1.0, 1e-6) << value;
        }
      }
    }
  }
}

// Catches rounding in place that differs from coding and decoding: ranks that share memory would train another model.
TEST(BlockCodes, RoundingEqualsCodingAndDecoding) {
  for (const BlockCode code : kCodes) {
    for (const DType dtype : kTypes) {
      for (const std::int64_t numel : kLengths) {
        const Values values(dtype, spread_values(numel, 5, 14));
        Values rounded = values;
        round_to_blocks(code, dtype, rounded.bytes.data(), rounded.bytes.data(), numel);
        EXPECT_EQ(rounded.wide(), there_and_back(code, values));
      }
    }
  }
}

// Catches a format that needs more bytes than intended.
TEST(BlockCodes, TakeHalfAndAQuarterOfSixteenBits) {
  const std::int64_t numel = 100000;
  EXPECT_LE(coded_bytes(BlockCode::kInt8, numel), 0.512 * 2 * numel);
  EXPECT_LE(coded_bytes(BlockCode::kInt4, numel), 0.267 * 2 * numel);
  EXPECT_EQ(coded_bytes(BlockCode::kInt8, 0), 0);
}

// Catches a type that is treated as another one.
TEST(BlockCodes, RefuseOtherTypes) {
  std::vector<double> values(8);
  std::vector<std::byte> coded(512);
  EXPECT_THROW(encode_blocks({BlockCode::kInt8, DType::kFloat64, 8, 1}, values.data(), coded.data()), UsageError);
  EXPECT_THROW(decode_blocks({BlockCode::kInt8, DType::kFloat64, 8, 1}, coded.data(), values.data()), UsageError);
  EXPECT_THROW(round_to_blocks(BlockCode::kInt4, DType::kFloat64, values.data(), values.data(), 8), UsageError);
}

}  // namespace
}  // namespace zeropage::optim
