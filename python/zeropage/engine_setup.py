"""Makes the parts of an engine: takes over the model, and makes the optimizer, the C++ engine and the scheduler."""

import weakref
from typing import Any

import torch

from . import _C, parameter_holders
from .data_types import cast_buffers, settle_types
from .engine_settings import EngineSettings
from .errors import ConfigError
from .lr_schedules import ConfiguredSchedule
from .optimizer import (
    ZeropageOptimizer,
    client_kind,
    client_optimizer,
    group_defaults,
    name_parameters,
    optimizer_facts,
    parameter_groups,
    params_for_state,
)
from .torch_optimizer import configured
from .unknown_parameters import UnknownParameters, check_groups
from .wrapped_tensors import inner_of_module


class EngineSetup(EngineSettings):
    """The part of the engine that runs while it is made."""

    def _place_model(self, model: torch.nn.Module) -> None:
        """Moves the model to the device; the engine casts parameters page by page."""
        for name, parameter in model.named_parameters():
            if torch.nn.parameter.is_lazy(parameter):
                raise ConfigError(
                    f"parameter {name!r} has no shape yet; run one batch through the model before zeropage.initialize"
                )
            if parameter.is_meta:
                raise ConfigError(
                    f"parameter {name!r} is on the meta device, without values; give it values, for example by model.to_empty(...)"
                )
        model.to(self.device)
        if self._config.precision == _C.Precision.FP16 and self.device.type == "cpu" and self.global_rank == 0:
            _C.log_warn(
                'fp16 on a CPU is tens of times slower than bf16: write "bf16": {"enabled": true} instead of "fp16"'
            )

    def _make_optimizer(
        self, optimizer: Any, model_parameters: Any, client_schedules: bool
    ) -> ZeropageOptimizer | None:
        """The optimizer before it is attached. The user's optimizer has priority over the configured one."""
        groups = parameter_groups(self.module, model_parameters)
        has_parameters = any(parameter.requires_grad for group in groups for parameter in group["params"])
        if optimizer is not None:
            client = client_optimizer(optimizer, groups)
        elif self._config.optimizer_kind == _C.OptimizerKind.TORCH and has_parameters:
            client = configured(self.config["optimizer"], groups, self.module)
        else:
            client = None
        if client is not None:
            groups = client.param_groups
        if has_parameters:
            check_groups(self.module, groups)
        if client_schedules:
            self._config.schedule_kind = _C.ScheduleKind.NONE
        kind = self._config.optimizer_kind if client is None else client_kind(client)
        if kind == _C.OptimizerKind.NONE or not has_parameters:
            return None
        made = ZeropageOptimizer(kind, groups, group_defaults(kind, self._config.optimizer_params), client)
        self._config.set_optimizer(kind, params_for_state(kind, made.param_groups))
        return made

    def _make_core(self) -> _C.Engine:
        groups, engine_groups = (
            ([], []) if self.optimizer is None else (self.optimizer.param_groups, self.optimizer.engine_groups())
        )
        parameters = name_parameters(self.module, groups)
        has_optimizer = self.optimizer is not None
        whole = self.optimizer.note_whole(parameters, self._config, self._world.size) if has_optimizer else set()
        self._unknown = UnknownParameters(self.module, parameters)
        _C.require_same_everywhere(self._communicator, optimizer_facts(self.optimizer))
        in_fp32 = settle_types(self.module, self._config, parameters, self.global_rank)
        cast_buffers(self.module, self._config, in_fp32)
        parameter_holders.end_holders(parameter for _, parameter, _ in parameters)
        core = _C.Engine(
            parameters,
            engine_groups,
            self._config,
            self._communicator,
            self.device,
            *self._communicators[1:],  # type: ignore[arg-type]  # None, too
            in_fp32=in_fp32,
            whole=whole,
        )
        # A peer may still read memory of an earlier engine here, which is freed next.
        _C.require_same_everywhere(self._communicator, "the parameters are taken")
        self._keep_parameters_only = weakref.finalize(self, core.keep_parameters_only)
        self._keep_parameters_only.atexit = False
        if self.optimizer is not None and self.optimizer.shards is not None:
            self.optimizer.shards.attach(core, self._communicator, parameters, core.owned_segments())
        self._named = parameters
        return core

    def _broadcast_buffers(self) -> None:
        """After the engine has compared the models of all ranks, so that the buffers are the same ones everywhere."""
        for buffer in (*self.module.buffers(), *(tensor for _, tensor in inner_of_module(self.module))):
            whole = buffer.detach().contiguous()
            self._communicator.job.broadcast(whole, 0)
            buffer.data.copy_(whole)

    def _make_scheduler(self, lr_scheduler: Any) -> Any:
        self._client_scheduler = lr_scheduler is not None
        if self.optimizer is None:
            return lr_scheduler
        if lr_scheduler is None:
            configured = self._config.schedule_kind != _C.ScheduleKind.NONE
            return ConfiguredSchedule(self._core, self.optimizer) if configured else None
        if callable(lr_scheduler) and not hasattr(lr_scheduler, "step"):
            return lr_scheduler(self.optimizer)
        # Its own optimizer never steps, and torch would warn about that.
        inner = getattr(lr_scheduler, "optimizer", None)
        if inner is not None:
            inner._opt_called = True
        return lr_scheduler
