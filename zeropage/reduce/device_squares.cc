#include "zeropage/reduce/device_squares.h"

namespace zeropage::reduce {

void add_squares(const at::Tensor& values, at::Tensor sum) {
  for (const auto& piece : values.split(kSquaredNumel)) {
    sum.add_(piece.to(at::kDouble, /*non_blocking=*/false, /*copy=*/true).square_().sum());
  }
}

}  // namespace zeropage::reduce
