// Tests of the kernels, compiled for the host (cuda_emulation.h): the same file that nvcc compiles.
#include "zeropage/optim/block_codes_cuda.cu"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace zeropage::optim {
namespace {

// Catches a kernel whose bytes or values differ from the host's: ranks of both kinds would disagree; warps after the
// last block, blocks that are not full, halves of bytes that are swapped, and a block with a NaN.
TEST(BlockCodesOnCuda, HaveTheHostsBytes) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (const BlockCode code : {BlockCode::kInt8, BlockCode::kInt4}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      for (const std::int64_t numel : {1, 65, 128, 200, 256, 257, 1900}) {
        const CodedParts parts{code, dtype, numel, 3};
        const auto total = static_cast<std::size_t>(3 * numel);
        std::vector<float> wide(total);
        for (float& value : wide) value = normal(random) * std::ldexp(1.0F, static_cast<int>(random() % 8));
        if (numel == 1900) wide[700] = std::numeric_limits<float>::infinity();
        std::vector<std::byte> values(total * static_cast<std::size_t>(element_bytes(dtype)));
        from_float32(wide.data(), values.data(), dtype, static_cast<std::int64_t>(total));

        std::vector<std::byte> expected(static_cast<std::size_t>(parts.total_bytes()));
        std::vector<std::byte> coded = expected;
        encode_blocks(parts, values.data(), expected.data());
        encode_on_cuda(parts, values.data(), coded.data(), nullptr);
        EXPECT_EQ(coded, expected) << numel << " of " << dtype_name(dtype);

        std::vector<std::byte> expected_values(values.size());
        std::vector<std::byte> decoded(values.size());
        decode_blocks(parts, expected.data(), expected_values.data());
        decode_on_cuda(parts, expected.data(), decoded.data(), nullptr);
        std::vector<float> expected_wide(total);
        std::vector<float> decoded_wide(total);
        to_float32(expected_values.data(), dtype, expected_wide.data(), static_cast<std::int64_t>(total));
        to_float32(decoded.data(), dtype, decoded_wide.data(), static_cast<std::int64_t>(total));
        for (std::size_t i = 0; i < total; ++i) {
          EXPECT_TRUE(decoded_wide[i] == expected_wide[i] ||
                      (std::isnan(decoded_wide[i]) && std::isnan(expected_wide[i])))
              << i;
        }
      }
    }
  }
}

// Catches a launch without elements, and a type that is treated as another one.
TEST(BlockCodesOnCuda, NothingAndOtherTypes) {
  const auto before = emulated_launches;
  encode_on_cuda({BlockCode::kInt8, DType::kFloat32, 0, 4}, nullptr, nullptr, nullptr);
  EXPECT_EQ(emulated_launches, before);
  EXPECT_THROW(encode_on_cuda({BlockCode::kInt8, DType::kFloat64, 5, 1}, nullptr, nullptr, nullptr), UsageError);
}

}  // namespace
}  // namespace zeropage::optim
