"""Activation checkpointing under DeepSpeed's names: `checkpoint` is torch's, with its random states kept.

Parameters are fetched again in the recomputation as anywhere else, so nothing has to be configured. What `configure` may ask for beyond that
and this version lacks is refused.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint as _torch_checkpoint

from .errors import ConfigError

_configured = False


def configure(
    mpu_: Any = None,
    deepspeed_config: Any = None,
    partition_activations: bool | None = None,
    contiguous_checkpointing: bool | None = None,
    num_checkpoints: int | None = None,
    checkpoint_in_cpu: bool | None = None,
    synchronize: bool | None = None,
    profile: bool | None = None,
) -> None:
    """Says that checkpointing may be used. `num_checkpoints` sizes the buffers of `contiguous_checkpointing` and has no use alone.

    Raises ConfigError for activations that are to be moved or put together, which this version does not do.
    """
    asked = {
        "mpu_": mpu_,
        "partition_activations": partition_activations,
        "contiguous_checkpointing": contiguous_checkpointing,
        "checkpoint_in_cpu": checkpoint_in_cpu,
        "synchronize": synchronize,
        "profile": profile,
    }
    for name, value in asked.items():
        if value:
            raise ConfigError(f"checkpointing.configure: {name}={value!r} is not available in this version: leave it out")
    global _configured
    _configured = True


def is_configured() -> bool:
    return _configured


def reset() -> None:
    """Nothing is kept between iterations, so there is nothing to clear."""


def checkpoint(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args), whose activations are computed again in the backward instead of being kept."""
    return _torch_checkpoint(function, *args, use_reentrant=False)


def non_reentrant_checkpoint(function: Callable[..., Any], *args: Any) -> Any:
    return checkpoint(function, *args)


def model_parallel_cuda_manual_seed(seed: int) -> None:
    """No ranks share a model, so one seed serves all random numbers."""
    torch.manual_seed(seed)


model_parallel_reconfigure_tp_seed = model_parallel_cuda_manual_seed
