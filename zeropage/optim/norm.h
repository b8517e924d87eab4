/// \file
/// The global gradient norm and the factor that limits it.
#pragma once

#include <cstdint>

#include "zeropage/base/dtype.h"

namespace zeropage::optim {

/// Sum of the squares of `numel` fp32, bf16, fp16 or fp64 elements, each square and the sum in double. Element i goes
/// to partial sum i mod 16 and these are added in one order, so the result depends on the values only: not on the
/// machine or on threads. Infinity and NaN propagate; fp32 squares cannot overflow. Cost: one read. Errors: UsageError
/// for kOther.
double sum_of_squares(const void* data, DType dtype, std::int64_t numel);

/// min(1, max_norm / (total_norm + 1e-6)), the rule of torch.nn.utils.clip_grad_norm_; 1 when max_norm is 0 (no
/// clipping). A NaN norm gives NaN, an infinite one 0.
float clip_coefficient(double total_norm, double max_norm);

}  // namespace zeropage::optim
