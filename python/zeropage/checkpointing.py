"""Activation checkpointing with DeepSpeed's names: `checkpoint` is torch's, with preserved random states and the
options of the configuration's section "activation_checkpointing" or of `configure`.

The recomputation gathers parameters again as in any other code. Each rank has its own activations, so they cannot be
sharded over ranks.
"""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint as _torch_checkpoint

from .errors import ConfigError
from .host_activations import on_host


@dataclass
class _Settings:
    cpu_checkpointing: bool = False
    synchronize_checkpoint_boundary: bool = False
    profile: bool = False


_settings: _Settings | None = None  # None: not configured


def configure(
    mpu_: Any = None,
    deepspeed_config: str | os.PathLike | dict[str, Any] | None = None,
    partition_activations: bool | None = None,
    contiguous_checkpointing: bool | None = None,
    num_checkpoints: int | None = None,
    checkpoint_in_cpu: bool | None = None,
    synchronize: bool | None = None,
    profile: bool | None = None,
) -> None:
    """Sets how `checkpoint` works from now on. Options without an argument are those of deepspeed_config (as for
    `initialize`), or off.

    checkpoint_in_cpu: inputs of checkpointed functions are kept in host memory until the backward needs them.
    synchronize: wait for the device at the start and the end of a checkpointed function. profile: each checkpoint is a
    range "checkpoint" in torch's profiles. partition_activations, contiguous_checkpointing, num_checkpoints: accepted;
    ranks do not share activations, and torch allocates them.

    Raises ConfigError for mpu_, and the errors of `initialize` for the configuration.
    """
    if mpu_ is not None:
        raise ConfigError("checkpointing.configure: mpu_ is not available in this version: leave it out")
    section: dict[str, Any] = {}
    if deepspeed_config is not None:
        from .initialize import parse_config

        section = json.loads(parse_config(deepspeed_config, world_size=0).effective_json)["activation_checkpointing"]
    asked = {"cpu_checkpointing": checkpoint_in_cpu, "synchronize_checkpoint_boundary": synchronize, "profile": profile}
    configure_from({**section, **{name: value for name, value in asked.items() if value is not None}})


def configure_from(section: dict[str, Any]) -> None:
    """As `configure`, with the effective values of the section "activation_checkpointing"."""
    global _settings
    _settings = _Settings(**section)


def _to_be_observed(settings: _Settings) -> AbstractContextManager:
    return torch.profiler.record_function("checkpoint") if settings.profile else nullcontext()


def _wait(settings: _Settings) -> None:
    if settings.synchronize_checkpoint_boundary and torch.accelerator.is_available():
        torch.accelerator.synchronize()


def is_configured() -> bool:
    return _settings is not None


def reset() -> None:
    """Nothing is kept between iterations, so there is nothing to clear."""


def checkpoint(function: Callable[..., Any], *args: Any) -> Any:
    """Runs function(*args). Its activations are recomputed in the backward instead of being kept."""
    settings = _settings or _Settings()
    _wait(settings)
    with _to_be_observed(settings), on_host() if settings.cpu_checkpointing else nullcontext():
        result = _torch_checkpoint(function, *args, use_reentrant=False)
    _wait(settings)
    return result


def non_reentrant_checkpoint(function: Callable[..., Any], *args: Any) -> Any:
    return checkpoint(function, *args)


def model_parallel_cuda_manual_seed(seed: int) -> None:
    """Ranks do not share a model, so one seed is used for all random numbers."""
    torch.manual_seed(seed)


model_parallel_reconfigure_tp_seed = model_parallel_cuda_manual_seed
