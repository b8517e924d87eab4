/// \file
/// Newton-Schulz iteration: a matrix with the singular vectors of another one and singular values near 1.
///
///     X = u, transposed when it has more rows than columns, divided by its Frobenius norm
///     five times:  A = X X^T,  X = a X + (b A + c A A) X          with (a, b, c) = (3.4445, -4.7750, 2.0315)
///
/// "standard" computes just that, operator for operator as torch.optim.Muon. "gram" multiplies the polynomials of the
/// iterations, which are functions of A alone, and applies them to X twice, after the second and the last iteration:
/// the same mathematics, and fewer operations where X is wide. After the second A is made from X again, which keeps
/// rounding from adding up.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

namespace zeropage::session {

/// `u` [rows, columns]. `method`: "standard" or "gram". Returns the same shape in the type of the iterations; `dtype`
/// nullopt: bf16 with "standard", with "gram" fp16, which CPUs compute too slowly, so that they take fp32. Cost: about
/// 6 * steps * rows * columns * min(rows, columns) operations.
at::Tensor orthogonal(const at::Tensor& u, const std::string& method, std::int64_t steps,
                      std::optional<at::ScalarType> dtype);

}  // namespace zeropage::session
