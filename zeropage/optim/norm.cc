#include "zeropage/optim/norm.h"

#include <algorithm>

#include "zeropage/optim/convert.h"
#include "zeropage/optim/vector_clones.h"

namespace zeropage::optim {
namespace {

constexpr int kLanes = SquareSum::kLanes;
constexpr std::int64_t kWidenedNumel = 2048;
static_assert(SquareSum::kBlockNumel % kLanes == 0, "element i must go to lane i mod kLanes in every block");

/// numel is a multiple of kLanes.
template <typename Element>
inline void add_squares(const Element* __restrict data, std::int64_t numel, double* __restrict lanes) {
  double sums[kLanes];
  std::copy_n(lanes, kLanes, sums);
  for (std::int64_t begin = 0; begin < numel; begin += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double value = data[begin + lane];
      sums[lane] += value * value;
    }
  }
  std::copy_n(sums, kLanes, lanes);
}

ZEROPAGE_VECTOR_CLONES
void add_squares_float(const float* data, std::int64_t numel, double* lanes) { add_squares(data, numel, lanes); }

ZEROPAGE_VECTOR_CLONES
void add_squares_double(const double* data, std::int64_t numel, double* lanes) { add_squares(data, numel, lanes); }

double folded(const double (&lanes)[kLanes]) {
  double sums[kLanes];
  std::copy_n(lanes, kLanes, sums);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  return sums[0];
}

}  // namespace

template <typename Element, typename AddBlock>
void SquareSum::add_in_blocks(const Element* data, std::int64_t numel, AddBlock add_block) {
  while (numel > 0) {
    const std::int64_t count = std::min(numel, kBlockNumel - in_block_);
    const auto scalar_until = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const double value = data[i];
        lanes_[(in_block_ + i) % kLanes] += value * value;
      }
    };
    const std::int64_t head = std::min(count, (kLanes - in_block_ % kLanes) % kLanes);
    const std::int64_t whole = (count - head) / kLanes * kLanes;
    scalar_until(0, head);
    add_block(data + head, whole, lanes_);
    scalar_until(head + whole, count);
    in_block_ += count;
    data += count;
    numel -= count;
    if (in_block_ < kBlockNumel) continue;
    blocks_ += folded(lanes_);
    std::fill_n(lanes_, kLanes, 0.0);
    in_block_ = 0;
  }
}

void SquareSum::add_floats(const float* data, std::int64_t numel) { add_in_blocks(data, numel, add_squares_float); }

void SquareSum::add_doubles(const double* data, std::int64_t numel) { add_in_blocks(data, numel, add_squares_double); }

void SquareSum::add(const void* data, DType dtype, std::int64_t numel) {
  if (dtype == DType::kFloat32) return add_floats(static_cast<const float*>(data), numel);
  if (dtype == DType::kFloat64) return add_doubles(static_cast<const double*>(data), numel);
  float widened[kWidenedNumel];
  for (std::int64_t begin = 0; begin < numel; begin += kWidenedNumel) {
    const std::int64_t count = std::min(kWidenedNumel, numel - begin);
    to_float32(static_cast<const char*>(data) + begin * element_bytes(dtype), dtype, widened, count);
    add_floats(widened, count);
  }
}

double SquareSum::sum() const { return in_block_ == 0 ? blocks_ : blocks_ + folded(lanes_); }

double sum_of_squares(const void* data, DType dtype, std::int64_t numel) {
  SquareSum squares;
  squares.add(data, dtype, numel);
  return squares.sum();
}

float clip_coefficient(double total_norm, double max_norm) {
  if (max_norm == 0.0) return 1.0F;
  const double coefficient = max_norm / (total_norm + 1e-6);
  return coefficient > 1.0 ? 1.0F : static_cast<float>(coefficient);
}

}  // namespace zeropage::optim
