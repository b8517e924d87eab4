"""Functions of torch that read a tensor's dispatch keys without the dispatcher. They are changed to ignore the key that
marks parameters (paging/parameter_link.h), for which they have no kernel.

  1. `tensor.new(...)` and `tensor.new_tensor(...)` treat the highest key as the tensor's device: they are called on an
     empty tensor of the same kind.
  2. Higher-order operators (`torch.cond`, flex_attention) are dispatched in Python, where fallbacks of C++ do not
     exist: the key is skipped. The operators that run inside of them are dispatched as always.
  3. Compiled code has kernels that read addresses, which no dispatcher sees (compiled_graphs.py).
  4. Profilers read the address in every storage that they find. While one runs, the guard of an absent parameter allows
     this.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch

from . import _C
from .compiled_graphs import fetch_in_compiled_code

_KEY = torch._C._parse_dispatch_key(_C.PARAMETER_KEY)


def pass_by_mark(held: Callable[[], Iterable[torch.Tensor]]) -> None:
    """Call before the first tensor is marked; later calls do nothing. held: the parameters of all engines."""
    default_keys = torch._ops._HIGHER_ORDER_OP_DEFAULT_FALLTHROUGH_DISPATCH_KEYS
    if _KEY in default_keys:
        return
    default_keys.append(_KEY)
    for operator in torch._ops._higher_order_ops.values():
        operator.fallthrough(_KEY)
    for name in ("new", "new_tensor"):
        setattr(torch.Tensor, name, _of_unmarked(getattr(torch.Tensor, name)))
    fetch_in_compiled_code(held)
    profiler = torch.autograd.profiler
    profiler._run_on_profiler_start = _and_say(profiler._run_on_profiler_start, True, held)
    profiler._run_on_profiler_stop = _and_say(profiler._run_on_profiler_stop, False, held)
    _C.set_profiled(profiler._is_profiler_enabled, list(held()))


def _of_unmarked(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that only reads the type and the device of its tensor, with the mark ignored."""

    @functools.wraps(method)
    def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch._C._dispatch_keys(tensor).has(_KEY):
            tensor = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return method(tensor, *args, **kwargs)

    return call


def _and_say(
    function: Callable[[], None], profiled: bool, held: Callable[[], Iterable[torch.Tensor]]
) -> Callable[[], None]:
    @functools.wraps(function)
    def call() -> None:
        function()
        _C.set_profiled(profiled, list(held()))

    return call
