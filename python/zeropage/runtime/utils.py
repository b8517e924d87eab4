"""Small helpers that programs import from `deepspeed.runtime.utils`."""

import gc
import os
from typing import Any

import torch

from ..compat.accelerator import get_accelerator
from ..distributed import current_world
from ..report import format_bytes
from ..utils import logger


def set_random_seed(seed: int) -> None:
    """Seeds Python, numpy (where it is imported) and torch."""
    import random
    import sys

    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    torch.manual_seed(seed)


def ensure_directory_exists(filename: str | os.PathLike) -> None:
    """Makes the folder that is to hold a file."""
    os.makedirs(os.path.dirname(os.fspath(filename)) or ".", exist_ok=True)


def see_memory_usage(message: str, force: bool = False) -> None:
    """Logs what this rank's device and host hold; on rank 0, and only with `force`, as in DeepSpeed."""
    if not force or current_world().rank != 0:
        return
    gc.collect()
    device = get_accelerator()
    with open("/proc/self/status") as status:
        resident = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))
    allocated, peak = device.memory_allocated(), device.max_memory_allocated()
    logger.info("%s | device %s, peak %s | host %s", message, format_bytes(allocated), format_bytes(peak), format_bytes(resident))


def get_global_norm(norm_list: list[float]) -> float:
    """The 2-norm of norms of parts."""
    return sum(norm * norm for norm in norm_list) ** 0.5


def is_model_parallel_parameter(parameter: Any) -> bool:
    """No parameter is split over ranks of one model."""
    return False
