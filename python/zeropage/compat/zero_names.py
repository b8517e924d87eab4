"""Constants and small classes that programs import from `deepspeed.runtime.zero` and `deepspeed.runtime.config`."""

import json
from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Any

import torch

from ..distributed import current_world
from ..errors import ConfigError, UsageError
from ..initialize import parse_config
from ..runtime.zero.offload_config import OffloadDeviceEnum, OffloadStateTypeEnum  # noqa: F401
from .accelerator import get_accelerator  # noqa: F401

DeepSpeedConfigError = ConfigError


class ZeroParamStatus(Enum):
    """Where a parameter's values are. INFLIGHT never occurs: a read of a parameter waits for it."""

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
        self.world_size = world.size
        self._take_batch(parsed)
        self.zero_optimization_stage = parsed.stage
        self.zero_enabled = parsed.stage > 0
        self.settings = json.loads(parsed.effective_json)

    def _take_batch(self, parsed: Any) -> None:
        self.train_micro_batch_size_per_gpu = parsed.micro_batch_size
        self.gradient_accumulation_steps = parsed.accumulation_steps
        self.train_batch_size = parsed.micro_batch_size * parsed.accumulation_steps * self.world_size

    def _configure_train_batch_size(self) -> None:
        """Computes those of the three batch sizes that are None. Raises ConfigError if they contradict each other or
        cannot be computed."""
        names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if not given.keys() & set(names[:2]):
            raise ConfigError("expected train_batch_size or train_micro_batch_size_per_gpu: neither is given")
        self._take_batch(parse_config(given, self.world_size))


class DeepSpeedZeroConfig:
    """The section zero_optimization read by itself: each key with its effective value as an attribute, with and without
    "stage3_"."""

    def __init__(self, **section: Any):
        in_force = json.loads(parse_config({"zero_optimization": section}, world_size=0).effective_json)[
            "zero_optimization"
        ]
        for name, value in in_force.items():
            setattr(self, name, value)
            setattr(self, name.removeprefix("stage3_"), value)


def _section_enabled(*names: str) -> Callable[[dict[str, Any]], bool]:
    def is_enabled(param_dict: dict[str, Any]) -> bool:
        return any(bool(param_dict.get(name, {}).get("enabled", False)) for name in names)

    return is_enabled


get_fp16_enabled, get_bfloat16_enabled = _section_enabled("fp16"), _section_enabled("bf16", "bfloat16")


class ZeRORuntimeException(UsageError):
    """For programs that catch DeepSpeed's error; this version raises its base class, and others."""


# transformers puts another function here while a model is made inside zero.Init, so that torch.arange keeps its types.
# zero.Init replaces no constructor of torch, so nothing calls it.
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
