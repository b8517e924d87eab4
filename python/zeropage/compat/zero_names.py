"""Constants and small classes that programs import from `deepspeed.runtime.zero` and `deepspeed.runtime.config`."""

import json
from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Any

import torch

from ..distributed import current_world
from ..errors import ConfigError
from ..initialize import parse_config
from ..runtime.zero.offload_config import OffloadDeviceEnum, OffloadStateTypeEnum  # noqa: F401
from .accelerator import get_accelerator  # noqa: F401

DeepSpeedConfigError = ConfigError


class ZeroParamStatus(Enum):
    """Where a parameter's values are. INFLIGHT is never seen: reading a parameter waits for it."""

    AVAILABLE = 1
    NOT_AVAILABLE = 2
    INFLIGHT = 3


class ZeroParamType(Enum):
    NORMAL = 1
    PARTITIONED = 2
    REMOTE = 3


class ZeroStageEnum(IntEnum):
    disabled = 0
    optimizer_states = 1
    gradients = 2
    weights = 3
    max_stage = 3


class DeepSpeedConfig:
    """A configuration read by itself: the three batch sizes, and every key with the effective value as `settings`."""

    def __init__(self, config: Any, mpu: Any = None, mesh_device: Any = None):
        if mpu is not None or mesh_device is not None:
            raise ConfigError("DeepSpeedConfig: mpu and mesh_device are not available in this version: leave them out")
        world = current_world()
        parsed = parse_config(config, world.size)
        self.train_micro_batch_size_per_gpu = parsed.micro_batch_size
        self.gradient_accumulation_steps = parsed.accumulation_steps
        self.train_batch_size = parsed.micro_batch_size * parsed.accumulation_steps * world.size
        self.world_size = world.size
        self.zero_optimization_stage = parsed.stage
        self.zero_enabled = parsed.stage > 0
        self.settings = json.loads(parsed.effective_json)


# transformers puts another function here while a model is made inside zero.Init, so that torch.arange keeps its types. zero.Init
# replaces no constructor of torch, so nobody calls it.
_orig_torch_arange = torch.arange


def zero_wrapper_for_fp_tensor_constructor(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    return fn


def dict_raise_error_on_duplicate_keys(ordered_pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.load(object_pairs_hook=...): a ConfigError names the keys that an object has twice."""
    names = [name for name, _ in ordered_pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"duplicate keys: {', '.join(twice)}; write each once")
    return dict(ordered_pairs)
