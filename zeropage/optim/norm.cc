#include "zeropage/optim/norm.h"

#include <fmt/format.h>

#include <algorithm>

#include "zeropage/base/error.h"
#include "zeropage/optim/convert.h"
#include "zeropage/optim/vector_clones.h"

namespace zeropage::optim {
namespace {

constexpr int kLanes = 16;
constexpr std::int64_t kBlockNumel = 2048;
static_assert(kBlockNumel % kLanes == 0, "element i must go to lane i mod kLanes in every block");

template <typename Element>
inline void add_squares(const Element* __restrict data, std::int64_t numel, double* __restrict lanes) {
  double sums[kLanes];
  std::copy_n(lanes, kLanes, sums);
  const std::int64_t whole = numel / kLanes * kLanes;
  for (std::int64_t begin = 0; begin < whole; begin += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double value = data[begin + lane];
      sums[lane] += value * value;
    }
  }
  for (std::int64_t i = whole; i < numel; ++i) {
    const double value = data[i];
    sums[i - whole] += value * value;
  }
  std::copy_n(sums, kLanes, lanes);
}

ZEROPAGE_VECTOR_CLONES
void add_squares_float(const float* data, std::int64_t numel, double* lanes) { add_squares(data, numel, lanes); }

ZEROPAGE_VECTOR_CLONES
void add_squares_double(const double* data, std::int64_t numel, double* lanes) { add_squares(data, numel, lanes); }

}  // namespace

double sum_of_squares(const void* data, DType dtype, std::int64_t numel) {
  double lanes[kLanes] = {};
  if (dtype == DType::kFloat32) {
    add_squares_float(static_cast<const float*>(data), numel, lanes);
  } else if (dtype == DType::kFloat64) {
    add_squares_double(static_cast<const double*>(data), numel, lanes);
  } else {
    float widened[kBlockNumel];
    for (std::int64_t begin = 0; begin < numel; begin += kBlockNumel) {
      const std::int64_t count = std::min(kBlockNumel, numel - begin);
      to_float32(static_cast<const char*>(data) + begin * element_bytes(dtype), dtype, widened, count);
      add_squares_float(widened, count, lanes);
    }
  }
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

float clip_coefficient(double total_norm, double max_norm) {
  if (max_norm == 0.0) return 1.0F;
  const double coefficient = max_norm / (total_norm + 1e-6);
  return coefficient > 1.0 ? 1.0F : static_cast<float>(coefficient);
}

}  // namespace zeropage::optim
