// Tests of the kernels, compiled for the host (cuda_emulation.h): the same file that nvcc compiles.
#include "zeropage/optim/norm_cuda.cu"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace zeropage::optim {
namespace {

std::vector<float> values_of_all_sizes(std::size_t numel) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> values(numel);
  for (float& value : values) value = normal(random) * std::ldexp(1.0F, static_cast<int>(random() % 20) - 10);
  return values;
}

/// The kernels' sum of each piece.
std::vector<double> sums_by_kernels(const std::vector<SquaredPiece>& pieces) {
  std::int64_t blocks = 0;
  for (const auto& piece : pieces) blocks += square_blocks(piece.numel);
  std::vector<double> lanes(static_cast<std::size_t>(blocks) * SquareSum::kLanes, -1.0);
  std::vector<double> partial(static_cast<std::size_t>(blocks), -1.0);
  square_on_cuda(pieces, lanes.data(), partial.data(), nullptr);
  std::vector<double> sums;
  std::size_t next = 0;
  for (const auto& piece : pieces) {
    double sum = 0.0;
    for (std::int64_t block = 0; block < square_blocks(piece.numel); ++block) sum += partial[next++];
    sums.push_back(sum);
  }
  return sums;
}

// Would catch a kernel that adds in another order than the host, leaves out elements at the end of a block or a piece,
// or uses those of the next piece; and launches that mix up pieces of two types, or more pieces than one launch takes.
TEST(NormOnCuda, HasTheHostsBits) {
  const std::vector<std::int64_t> lengths = {1, 15, 16, 0, 17, 511, 512, 65535, 65536, 65537, 150001, 0};
  const auto values = values_of_all_sizes(400000);
  std::vector<std::uint16_t> narrow[2];
  const DType narrow_types[2] = {DType::kBFloat16, DType::kFloat16};
  for (int i = 0; i < 2; ++i) {
    narrow[i].resize(values.size());
    from_float32(values.data(), narrow[i].data(), narrow_types[i], static_cast<std::int64_t>(values.size()));
  }
  std::vector<SquaredPiece> pieces;
  for (int round = 0; round < 40; ++round) {
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      if (round > 0 && lengths[i] > 100) continue;
      const std::size_t begin = 3 * i + static_cast<std::size_t>(round);
      const auto type = (round / 3 + i / 5) % 3;
      const void* data = type == 0 ? static_cast<const void*>(values.data() + begin) : narrow[type - 1].data() + begin;
      pieces.push_back({data, lengths[i], type == 0 ? DType::kFloat32 : narrow_types[type - 1]});
    }
  }
  const auto sums = sums_by_kernels(pieces);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    EXPECT_EQ(sums[i], sum_of_squares(pieces[i].data, pieces[i].dtype, pieces[i].numel))
        << i << ": " << pieces[i].numel << " of " << dtype_name(pieces[i].dtype);
  }
}

// Would catch a sum that hides an overflow, or in which squares of large fp32 values overflow.
TEST(NormOnCuda, InfinityAndNanPropagate) {
  std::vector<float> values(70000, 1e30F);
  EXPECT_EQ(sums_by_kernels({{values.data(), 70000, DType::kFloat32}}).at(0),
            sum_of_squares(values.data(), DType::kFloat32, 70000));
  values[69999] = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(std::isinf(sums_by_kernels({{values.data(), 70000, DType::kFloat32}}).at(0)));
  values[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(sums_by_kernels({{values.data(), 70000, DType::kFloat32}}).at(0)));
  EXPECT_THROW(sums_by_kernels({{values.data(), 5, DType::kFloat64}}), UsageError);
}

}  // namespace
}  // namespace zeropage::optim
