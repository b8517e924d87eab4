"""Small helpers that programs import from `deepspeed.runtime.utils`."""

import contextlib
import gc
import os
import random
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..compat.accelerator import get_accelerator
from ..distributed import current_world
from ..errors import UsageError
from ..report import format_bytes, process_bytes
from ..utils import logger


def set_random_seed(seed: int) -> None:
    """Seeds Python, numpy (if it is imported) and torch."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    torch.manual_seed(seed)


def ensure_directory_exists(filename: str | os.PathLike) -> None:
    """Makes the folder of a file."""
    os.makedirs(os.path.dirname(os.fspath(filename)) or ".", exist_ok=True)


def see_memory_usage(message: str, force: bool = False) -> None:
    """Logs the memory in use on this rank's device and host; on rank 0, and only with `force`, as in DeepSpeed."""
    if not force or current_world().rank != 0:
        return
    gc.collect()
    device = get_accelerator()
    allocated, peak = device.memory_allocated(), device.max_memory_allocated()
    resident = process_bytes()
    logger.info(
        "%s | device %s, peak %s | host %s",
        message,
        format_bytes(allocated),
        format_bytes(peak),
        format_bytes(resident),
    )


def empty_cache() -> None:
    """Frees the device's cached memory, and resets its peaks."""
    get_accelerator().empty_cache()
    get_accelerator().reset_peak_memory_stats()


def is_model_parallel_parameter(parameter: Any) -> bool:
    """No parameter is split over ranks of one model."""
    return False


def move_to_device(item: Any, device: torch.device | str, criterion_func: Callable[[Any], bool] | None = None) -> Any:
    """A copy of `item` with its lists, tuples and dicts, and the tensors for which criterion_func is true (None: all)
    on this device."""
    if isinstance(item, torch.Tensor):
        return item.to(device) if criterion_func is None or criterion_func(item) else item
    if isinstance(item, (list, tuple)):
        return type(item)(move_to_device(each, device, criterion_func) for each in item)
    if isinstance(item, dict):
        return {key: move_to_device(value, device, criterion_func) for key, value in item.items()}
    return item


copy_to_device = move_to_device


def get_only_unique_item(items: Iterable[Any]) -> Any:
    """The value that all of them have. Raises UsageError, a RuntimeError, if there are several values or none."""
    found = set(items)
    if len(found) != 1:
        raise UsageError(f"expected there to be only one unique element in {items}")
    return found.pop()


def call_to_str(base: str, *args: Any, **kwargs: Any) -> str:
    """The text of a call: call_to_str("f", 1, key=2) is "f(1, key=2)"."""
    return f"{base}({', '.join([*map(repr, args), *(f'{key}={value!r}' for key, value in kwargs.items())])})"


def mask_nan_or_inf_with_val_inplace(input: torch.Tensor, device: Any = None, val: float = -1.0) -> None:  # noqa: A002
    """Replaces elements that are inf or nan by `val`."""
    input.masked_fill_(~torch.isfinite(input), val)


def get_inactive_params(param_list: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The parameters of stage 3 whose values are not in this rank's memory."""
    from ..compat.parameter_view import status_of
    from ..compat.zero_names import ZeroParamStatus
    from ..parameter_holders import is_sharded

    return [
        parameter
        for parameter in param_list
        if is_sharded(parameter) and status_of(parameter) is ZeroParamStatus.NOT_AVAILABLE
    ]


def noop_decorator(func: Callable[..., Any]) -> Callable[..., Any]:
    return func


noop_context = contextlib.nullcontext


class DummyOptim:
    """Replaces an optimizer for programs that read the groups of an object: one group of parameters, and no step."""

    def __init__(self, params: Any):
        self.param_groups = [{"params": params}]
