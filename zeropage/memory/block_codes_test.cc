#include "zeropage/memory/block_codes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "zeropage/optim/convert.h"

namespace zeropage::memory {
namespace {

// Catches operators of torch that code or decode differently from the kernels: a rank whose build has no kernels would
// send other values than one with kernels.
TEST(BlockCodesByOperators, HaveTheBytesOfTheKernels) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (const auto code : {optim::BlockCode::kInt8, optim::BlockCode::kInt4}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      for (const std::int64_t numel : {0, 1, 65, 128, 256, 257, 1900}) {
        const optim::CodedParts parts{code, dtype, numel, 3};
        const auto total = static_cast<std::size_t>(3 * numel);
        std::vector<float> wide(total);
        for (std::size_t i = 0; i < total; ++i) {
          wide[i] = normal(random) * std::ldexp(1.0F, static_cast<int>(i / 100 % 20) - 10);
        }
        if (numel == 1900) {
          wide[700] = std::numeric_limits<float>::infinity();
          wide[2000] = std::numeric_limits<float>::quiet_NaN();
          for (std::size_t i = 2304; i < 2900; ++i) wide[i] = 0.0F;
          for (std::size_t i = 4000; i < 4100; ++i) wide[i] = 1e-41F;
          for (std::size_t i = 5000; i < 5200; ++i) wide[i] = std::numeric_limits<float>::max();
        }
        std::vector<std::byte> values(total * static_cast<std::size_t>(element_bytes(dtype)));
        optim::from_float32(wide.data(), values.data(), dtype, static_cast<std::int64_t>(total));
        std::vector<std::byte> expected(static_cast<std::size_t>(parts.total_bytes()));
        std::vector<std::byte> coded(expected.size(), std::byte{0xee});
        optim::encode_blocks(parts, values.data(), expected.data());
        encode_blocks_by_operators(parts, values.data(), coded.data(), c10::kCPU);
        EXPECT_EQ(coded, expected) << numel << " of " << dtype_name(dtype);

        std::vector<std::byte> decoded(values.size());
        optim::decode_blocks(parts, expected.data(), values.data());
        decode_blocks_by_operators(parts, expected.data(), decoded.data(), c10::kCPU);
        std::vector<float> decoded_wide(total);
        optim::to_float32(values.data(), dtype, wide.data(), static_cast<std::int64_t>(total));
        optim::to_float32(decoded.data(), dtype, decoded_wide.data(), static_cast<std::int64_t>(total));
        for (std::size_t i = 0; i < total; ++i) {
          EXPECT_TRUE(decoded_wide[i] == wide[i] || (std::isnan(decoded_wide[i]) && std::isnan(wide[i]))) << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace zeropage::memory
