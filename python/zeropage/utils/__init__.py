"""Small helpers that scripts expect under `deepspeed.utils`."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ..distributed import current_world
from .tensor_fragment import (
    safe_get_full_fp32_param,
    safe_get_full_grad,
    safe_get_full_model_grads,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_get_local_grad,
    safe_get_local_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_grad,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_grad,
    safe_set_local_optimizer_state,
    safe_update_full_grad_vectorized,
)

__all__ = [
    "RepeatingLoader",
    "log_dist",
    "logger",
    "safe_get_full_fp32_param",
    "safe_get_full_grad",
    "safe_get_full_model_grads",
    "safe_get_full_optimizer_state",
    "safe_get_local_fp32_param",
    "safe_get_local_grad",
    "safe_get_local_optimizer_state",
    "safe_set_full_fp32_param",
    "safe_set_full_grad",
    "safe_set_full_optimizer_state",
    "safe_set_local_fp32_param",
    "safe_set_local_grad",
    "safe_set_local_optimizer_state",
    "safe_update_full_grad_vectorized",
]

logger = logging.getLogger("zeropage")


def log_dist(message: str, ranks: list[int] | None = None, level: int = logging.INFO) -> None:
    """Logs on these ranks only; None or [-1]: on all."""
    rank = current_world().rank
    if not ranks or -1 in ranks or rank in ranks:
        logger.log(level, "[Rank %d] %s", rank, message)


def instrument_w_nvtx(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `function` so that its calls are ranges with its name in torch's profiles."""

    @functools.wraps(function)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(function.__qualname__):
            return function(*args, **kwargs)

    return recorded


class RepeatingLoader:
    """A loader that starts again at its end."""

    def __init__(self, loader: Iterable[Any]):
        self.loader = loader
        self._batches = iter(loader)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._batches)
        except StopIteration:
            self._batches = iter(self.loader)
            return next(self._batches)
