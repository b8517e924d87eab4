/// \file
/// Newton-Schulz iteration: computes a matrix with the singular vectors of u and singular values near 1.
///
///     X = u, transposed when it has more rows than columns, divided by its Frobenius norm
///     five times:  A = X X^T,  X = a X + (b A + c A A) X          with (a, b, c) = (3.4445, -4.7750, 2.0315)
///
/// "standard" computes exactly this, with the same operators as torch.optim.Muon. "gram" multiplies the polynomials of
/// the iterations, which are functions of A only, and applies them to X twice: after the second and after the last
/// iteration. This is the same mathematics, with fewer operations if X is wide. After the second iteration A is
/// computed from X again, so that rounding errors do not accumulate.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

namespace zeropage::session {

/// `u` [rows, columns]. `method`: "standard" or "gram". Returns the same shape in the type of the iterations; `dtype`
/// nullopt: bf16 with "standard"; fp16 with "gram", but fp32 on CPUs, because their fp16 is slow. Cost: about 6 *
/// steps * rows * columns * min(rows, columns) operations.
at::Tensor orthogonal(const at::Tensor& u, const std::string& method, std::int64_t steps,
                      std::optional<at::ScalarType> dtype);

}  // namespace zeropage::session
