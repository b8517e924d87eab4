/// \file
/// The global gradient norm, and the factor of clipping.
#pragma once

#include <cstdint>

#include "zeropage/base/dtype.h"

namespace zeropage::optim {

/// Sum of the squares of fp32, bf16, fp16 or fp64 elements that are added in pieces, each square and the sum in double.
/// Element i of a block of kBlockNumel is added to partial sum i mod 16; these are added in a fixed order, and so are
/// the blocks. So the result depends only on the values, not on the pieces, the machine or threads. Infinity and NaN
/// propagate; fp32 squares cannot overflow.
class SquareSum {
 public:
  static constexpr int kLanes = 16;
  static constexpr std::int64_t kBlockNumel = 1 << 16;

  /// Adds the next `numel` elements. Cost: one read. Errors: UsageError for kOther.
  void add(const void* data, DType dtype, std::int64_t numel);

  /// The sum of all elements so far. Cost: a few additions.
  double sum() const;

 private:
  void add_floats(const float* data, std::int64_t numel);
  void add_doubles(const double* data, std::int64_t numel);
  template <typename Element, typename AddBlock>
  void add_in_blocks(const Element* data, std::int64_t numel, AddBlock add_block);

  double blocks_ = 0.0;        // sum of the complete blocks
  std::int64_t in_block_ = 0;  // elements of the incomplete block
  double lanes_[kLanes] = {};
};

/// Number of blocks of SquareSum for `numel` elements.
constexpr std::int64_t square_blocks(std::int64_t numel) {
  return (numel + SquareSum::kBlockNumel - 1) / SquareSum::kBlockNumel;
}

/// SquareSum of one piece.
double sum_of_squares(const void* data, DType dtype, std::int64_t numel);

/// min(1, max_norm / (total_norm + 1e-6)), the rule of torch.nn.utils.clip_grad_norm_; 1 when max_norm is 0 (no
/// clipping). A NaN norm gives NaN, an infinite one 0.
float clip_coefficient(double total_norm, double max_norm);

}  // namespace zeropage::optim
