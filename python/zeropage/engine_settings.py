"""Getters of the engine for its configuration and its progress, with the names that training scripts use."""

import json
from typing import Any

import torch

from . import _C
from .compat.engine_getters import EngineGetters


class EngineSettings(EngineGetters):
    """Getters, by subject."""

    # -- ranks

    @property
    def global_rank(self) -> int:
        return self._world.rank

    @property
    def local_rank(self) -> int:
        return self._world.local_rank

    @property
    def world_size(self) -> int:
        return self._world.size

    @property
    def dp_world_size(self) -> int:
        return self._world.size

    @property
    def mp_world_size(self) -> int:
        return 1

    @property
    def data_parallel_group(self) -> Any:
        """torch's group of all ranks, for programs that use torch.distributed themselves; None while there is none."""
        return torch.distributed.group.WORLD if torch.distributed.is_initialized() else None

    def get_data_parallel_group(self) -> Any:
        return self.data_parallel_group

    def get_data_parallel_rank(self) -> int:
        return self.global_rank

    def get_data_parallel_world_size(self) -> int:
        return self.world_size

    def get_sequence_parallel_group(self) -> None:
        """None: no ranks share a sequence."""
        return None

    def get_sequence_parallel_world_size(self) -> int:
        return 1

    # -- batch sizes

    def train_batch_size(self) -> int:
        return self._core.train_batch_size

    def train_micro_batch_size_per_gpu(self) -> int:
        return self._core.micro_batch_size

    def gradient_accumulation_steps(self) -> int:
        return self._core.accumulation_steps

    def get_batch_info(self) -> tuple[int, int, int]:
        """(train batch size, micro batch size, accumulation steps)"""
        return self.train_batch_size(), self.train_micro_batch_size_per_gpu(), self.gradient_accumulation_steps()

    def set_train_batch_size(self, train_batch_size: int) -> None:
        """Changes the accumulation steps from now on; the micro batch size stays the same. A window that already has
        this length, or more, ends with its next micro step."""
        self._core.train_batch_size = train_batch_size

    def set_train_micro_batch_size(self, micro_batch_size: int) -> None:
        """Changes the train batch size; the accumulation steps stay the same."""
        self._core.micro_batch_size = micro_batch_size

    # -- optimizer and schedule

    @property
    def basic_optimizer(self) -> Any:
        return self.optimizer

    def optimizer_name(self) -> str | None:
        kind = self._config.optimizer_kind
        if kind == _C.OptimizerKind.TORCH:
            return type(self.optimizer.shards.client).__name__.lower()
        return _C.optimizer_name(kind) or None

    def optimizer_params(self) -> dict[str, Any] | None:
        """The section optimizer.params with the effective values; None: there is no such section."""
        return self.config["optimizer"].get("params")

    def scheduler_params(self) -> dict[str, Any] | None:
        return self.config["scheduler"].get("params")

    def scheduler_name(self) -> str | None:
        kind = self._config.schedule_kind
        return None if kind == _C.ScheduleKind.NONE else kind.name

    def get_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def get_mom(self) -> list[tuple[float, float] | float]:
        """The betas of each group; for SGD its momentum, and 0 for Adagrad, which has none."""
        return [group.get("betas", group.get("momentum", 0.0)) for group in self.optimizer.param_groups]

    def gradient_clipping(self) -> float:
        return self._config.gradient_clipping

    def gradient_predivide_factor(self) -> float:
        return self._config.gradient_predivide_factor

    def prescale_gradients(self) -> bool:
        return self._config.prescale_gradients

    def zero_compute_grad_norm(self) -> bool:
        return self._config.computes_gradient_norm

    # -- precision

    def fp16_enabled(self) -> bool:
        return self._config.precision == _C.Precision.FP16

    def bfloat16_enabled(self) -> bool:
        return self._config.precision == _C.Precision.BF16

    def fp16_auto_cast(self) -> bool:
        return self._config.cast_inputs

    def autocast_dtype(self) -> torch.dtype | None:
        """The type of the forward's operators under autocast; None: no autocast."""
        return _C.DataTypes(self._config).autocast

    def loss_scale(self) -> float:
        return self._core.loss_scale

    def dynamic_loss_scale(self) -> bool:
        return self.fp16_enabled() and self._config.dynamic_loss_scale

    def get_data_types(self) -> tuple[torch.dtype, torch.dtype]:
        """(parameters, gradient accumulation)"""
        types = _C.DataTypes(self._config)
        return types.parameters, types.accumulation

    @property
    def communication_data_type(self) -> torch.dtype:
        return _C.DataTypes(self._config).communication

    # -- ZeRO

    def zero_optimization(self) -> bool:
        return self._config.stage > 0

    def zero_optimization_stage(self) -> int:
        return self._config.stage

    def zero_gather_16bit_weights_on_model_save(self) -> bool:
        return self._config.gather_16bit_weights_on_model_save

    def zero_offload_optimizer(self) -> dict[str, Any] | None:
        """The section offload_optimizer with the effective values; None: its state stays on the device."""
        return self._offload("offload_optimizer")

    def zero_offload_param(self) -> dict[str, Any] | None:
        return self._offload("offload_param")

    def _offload(self, section: str) -> dict[str, Any] | None:
        found = self.config["zero_optimization"].get(section)
        return found if found and found["device"] != "none" else None

    # -- progress

    @property
    def global_steps(self) -> int:
        """Boundary steps, applied or skipped."""
        return self._core.global_steps

    @property
    def global_samples(self) -> int:
        """Samples of all ranks in all boundary steps, each with its own batch size."""
        return self._core.global_samples

    @property
    def micro_steps(self) -> int:
        """Calls of `step`; with "managed_gradient_accumulation": false the backwards before them."""
        return self._core.micro_steps

    @property
    def skipped_steps(self) -> int:
        return self._core.skipped_steps

    def steps_per_print(self) -> int | None:
        return self._config.steps_per_print

    def wall_clock_breakdown(self) -> bool:
        return self.config["wall_clock_breakdown"]

    def dump_state(self) -> bool:
        return self._config.dump_state

    @property
    def config(self) -> dict[str, Any]:
        """Every key with its effective value."""
        return json.loads(self._config.effective_json)
