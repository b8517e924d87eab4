/// \file
/// Squares of gradients summed where they lie, by operators: what a device does in place of optim::SquareSum.
#pragma once

#include "zeropage/paging/torch_config.h"

#include <ATen/core/Tensor.h>

namespace zeropage::reduce {

/// Adds the squares of `values` [n], each and their sum in double, to `sum` [], fp64 on the same device. Waits for nothing. Cost: one
/// read, and temporary doubles of at most kSquaredNumel elements.
void add_squares(const at::Tensor& values, at::Tensor sum);

constexpr std::int64_t kSquaredNumel = 1 << 23;

}  // namespace zeropage::reduce
