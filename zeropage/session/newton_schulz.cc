#include "zeropage/session/newton_schulz.h"

#include <ATen/ATen.h>

namespace zeropage::session {
namespace {

constexpr double kA = 3.4445;
constexpr double kB = -4.7750;
constexpr double kC = 2.0315;
constexpr double kSmallestNorm = 1e-7;
constexpr std::int64_t kRestart = 2;

/// Returns b A + c A A.
at::Tensor polynomial(const at::Tensor& a) { return at::addmm(a, a, a, kB, kC); }

at::Tensor standard(const at::Tensor& u, std::int64_t steps, at::ScalarType dtype) {
  const bool tall = u.size(0) > u.size(1);
  at::Tensor x = u.to(dtype, /*non_blocking=*/false, /*copy=*/true);
  if (tall) x = x.t();
  x.div_(x.norm().clamp_min(kSmallestNorm));
  for (std::int64_t step = 0; step < steps; ++step) {
    const at::Tensor a = x.mm(x.t());
    x = at::addmm(x, polynomial(a), x, kA);
  }
  return tall ? x.t() : x;
}

at::Tensor gram(const at::Tensor& u, std::int64_t steps, at::ScalarType dtype) {
  const bool tall = u.size(0) > u.size(1);
  const at::Tensor wide = tall ? u.t() : u;
  // Small values would be lost if u were rounded first.
  at::Tensor x = wide.div(wide.norm().clamp_min(kSmallestNorm)).to(dtype);
  at::Tensor product;  // the product of the polynomials that are not applied to x yet
  at::Tensor a = x.mm(x.t());
  for (std::int64_t step = 0; step < steps; ++step) {
    if (step == kRestart) {
      x = product.mm(x);
      product = at::Tensor();
      a = x.mm(x.t());
    }
    at::Tensor factor = polynomial(a);
    factor.diagonal().add_(kA);
    product = product.defined() ? factor.mm(product) : factor;
    if (step + 1 != kRestart && step + 1 != steps) a = factor.mm(a).mm(factor);
  }
  x = product.mm(x);
  return tall ? x.t() : x;
}

}  // namespace

at::Tensor orthogonal(const at::Tensor& u, const std::string& method, std::int64_t steps,
                      std::optional<at::ScalarType> dtype) {
  if (method == "gram") return gram(u, steps, dtype.value_or(u.is_cpu() ? at::kFloat : at::kHalf));
  return standard(u, steps, dtype.value_or(at::kBFloat16));
}

}  // namespace zeropage::session
