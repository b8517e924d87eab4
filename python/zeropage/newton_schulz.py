"""Newton-Schulz iteration: a matrix with the singular vectors of another one and singular values near 1.

    X = u, transposed when it has more rows than columns, divided by its Frobenius norm
    five times:  A = X X^T,  X = a X + (b A + c A A) X          with (a, b, c) = (3.4445, -4.7750, 2.0315)

"standard" computes just that, operator for operator as torch.optim.Muon. "gram" multiplies the polynomials of the
iterations, which are functions of A alone, and applies them to X twice, after the second and the last iteration: the
same mathematics, and fewer operations where X is wide. From the second on A is made from X again, which keeps rounding
from adding up.
"""

import torch

_A, _B, _C = 3.4445, -4.7750, 2.0315
_SMALLEST_NORM = 1e-7
_RESTART = 2


def orthogonal(u: torch.Tensor, method: str, steps: int, dtype: torch.dtype | None) -> torch.Tensor:
    """u [rows, columns]. Returns the same shape in the type of the iterations; dtype None: bf16 with "standard", with
    "gram" fp16, which CPUs compute too slowly, so that they take fp32. Cost: about 6 * steps * rows * columns *
    min(rows, columns) operations."""
    if method == "gram":
        return _gram(u, steps, dtype or (torch.float32 if u.device.type == "cpu" else torch.float16))
    return _standard(u, steps, dtype or torch.bfloat16)


def _standard(u: torch.Tensor, steps: int, dtype: torch.dtype) -> torch.Tensor:
    x = u.to(dtype, copy=True)
    if u.size(0) > u.size(1):
        x = x.T
    x.div_(x.norm().clamp(min=_SMALLEST_NORM))
    for _ in range(steps):
        a = x @ x.T
        x = torch.addmm(x, torch.addmm(a, a, a, beta=_B, alpha=_C), x, beta=_A)
    return x.T if u.size(0) > u.size(1) else x


def _gram(u: torch.Tensor, steps: int, dtype: torch.dtype) -> torch.Tensor:
    wide = u.T if u.size(0) > u.size(1) else u
    x = wide.div(wide.norm().clamp(min=_SMALLEST_NORM)).to(dtype)  # small values would be lost if it were rounded first
    product = None  # of the polynomials that x does not have yet
    a = x @ x.T
    for step in range(steps):
        if step == _RESTART:
            x, product = product @ x, None
            a = x @ x.T
        factor = torch.addmm(a, a, a, beta=_B, alpha=_C)
        factor.diagonal().add_(_A)
        product = factor if product is None else factor @ product
        if step + 1 not in (_RESTART, steps):
            a = factor @ a @ factor
    x = product @ x
    return x.T if u.size(0) > u.size(1) else x
