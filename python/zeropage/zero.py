"""`deepspeed.zero`: models larger than memory, explicit access to parameters, and names for things that are not needed
here.

`Init` is for building a model that does not fit on one rank. Operators gather the parameters that they use
automatically. `GatheredParameters` is for code that bypasses the dispatcher (raw pointers, `.numpy()`), and for edits
by one rank that all ranks must get.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from typing import Any

import torch

from . import _C
from .distributed import choose_device, current_world, make_communicators
from .errors import ConfigError, UsageError
from .initialize import parse_config
from .parameter_holders import engine_of, held_parameters
from .torch_paths import pass_by_mark


class Init:
    """Inside the scope, tensors that this thread makes are kept within the limit on live parameters
    (`stage3_max_live_parameters`).

    Above the limit the least recently used ones are divided into shards, one per rank, and operators gather them again.
    `initialize` takes the model's parameters over page by page, so no rank ever holds the whole model. Every rank ends
    with rank 0's values. Ranks must run the same code until then. Does nothing below stage 3, or with one rank unless
    parameters are on a drive.

    module: its parameters are taken over as if they had been made inside. config_dict_or_path, config: as for
    `initialize`; none: stage 3 with its defaults. dtype: the default type of floating-point tensors inside. None:
    unchanged; `initialize` casts to the configured precision, and its fp32 masters are then the exact initial values.
    zero_quantized_weights, zero_quantized_nontrainable_weights: `initialize` reads these from its configuration. Inside
    the scope parameters are gathered without quantization. mem_efficient_linear, pin_memory: accepted for
    compatibility, without effect.
    """

    def __init__(
        self,
        module: torch.nn.Module | None = None,
        data_parallel_group: Any = None,
        mem_efficient_linear: bool = True,
        remote_device: str | None = None,
        pin_memory: bool = False,
        config_dict_or_path: str | os.PathLike | dict[str, Any] | None = None,
        config: str | os.PathLike | dict[str, Any] | None = None,
        enabled: bool = True,
        dtype: torch.dtype | None = None,
        mpu: Any = None,
        zero_param_parallel_group: Any = None,
        zero_quantized_weights: bool = False,
        zero_quantized_nontrainable_weights: bool = False,
        sequence_data_parallel_group: Any = None,
        param_swapper: Any = None,
        tensor_overrides: Any = None,
    ):
        not_built = {
            "data_parallel_group": data_parallel_group,
            "remote_device": None if remote_device == "none" else remote_device,
            "mpu": mpu,
            "zero_param_parallel_group": zero_param_parallel_group,
            "sequence_data_parallel_group": sequence_data_parallel_group,
            "param_swapper": param_swapper,
            "tensor_overrides": tensor_overrides,
        }
        for name, value in not_built.items():
            if value is not None and value is not False:
                raise ConfigError(f"zero.Init: {name} is not available in this version: leave it out")
        if config is not None and config_dict_or_path is not None:
            raise ConfigError("zero.Init: expected config_dict_or_path or config, got both: pass one of them")
        source = config_dict_or_path if config is None else config
        self._config = parse_config({"zero_optimization": {"stage": 3}} if source is None else source, world_size=0)
        self._dtype = dtype
        self._world = current_world()
        self._name_quantized(
            zero_quantized_weights=zero_quantized_weights,
            zero_quantized_nontrainable_weights=zero_quantized_nontrainable_weights,
        )
        self._enabled = (
            enabled and self._config.stage == 3 and (self._world.size > 1 or self._config.parameters_on_disk)
        )
        self._inside = contextlib.ExitStack()
        if module is not None and self._enabled:
            with self:
                for parameter in module.parameters():
                    self._scope.adopt(parameter)

    def _name_quantized(self, **arguments: bool) -> None:
        """Warns about arguments that only have an effect in the configuration."""
        zero = json.loads(self._config.effective_json)["zero_optimization"]
        for name, value in arguments.items():
            if value and not zero[name] and self._world.rank == 0:
                _C.log_warn(
                    f"zero.Init: {name}=True has no effect here, because parameters are gathered without quantization: write "
                    f'"{name}": true into zero_optimization of the configuration that initialize gets'
                )

    def __enter__(self) -> "Init":
        pass_by_mark(held_parameters)
        if self._dtype is not None and self._dtype.is_floating_point:
            self._inside.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(self._dtype)
        if self._enabled:
            device = choose_device(None, self._world)
            communicator = make_communicators(self._config, device, self._world).parameters
            if device.type != "cpu":
                self._inside.enter_context(device)  # tensors are made on the device of the training
            self._scope = _C.Init(self._config, communicator, device)
            self._inside.callback(self._scope.leave)
        return self

    def __exit__(self, *exception) -> None:
        self._inside.close()


class GatheredParameters:
    """Inside the scope the parameters are whole on every rank that has entered it.

    params: a parameter or an iterable of them; those that neither an engine nor an `Init` scope holds are ignored, and
    so is None, which programs pass for a missing bias. modifier_rank: at the end every rank gets this rank's values
    (collective). None: each rank keeps the values that it wrote, which must be the same on all ranks. fwd_module:
    accepted for compatibility, without effect.
    """

    def __init__(
        self,
        params: torch.Tensor | Iterable[torch.Tensor],
        modifier_rank: int | None = None,
        fwd_module: torch.nn.Module | None = None,
        enabled: bool = True,
    ):
        params = [params] if isinstance(params, torch.Tensor) else [p for p in params if p is not None]
        wrong = next((p for p in params if not isinstance(p, torch.Tensor)), None)
        if wrong is not None:
            raise UsageError(
                f"GatheredParameters takes parameters, got {type(wrong).__name__}; for a module pass `module.parameters()`"
            )
        self._params = params if enabled else []
        self._modifier_rank = -1 if modifier_rank is None else modifier_rank
        self._tickets: list[tuple[_C.Engine, int]] = []
        self._deferred: list[torch.Tensor] = []

    def __enter__(self) -> None:
        self._deferred = [parameter for parameter in self._params if _C.is_deferred(parameter)]
        _C.gather_deferred(self._deferred)
        by_engine: dict[_C.Engine, dict[int, torch.Tensor]] = {}
        for parameter in self._params:
            engine = engine_of(parameter)
            if engine is not None:
                by_engine.setdefault(engine, {})[id(parameter)] = parameter
        for engine, parameters in by_engine.items():
            self._tickets.append((engine, engine.gather(list(parameters.values()))))

    def __exit__(self, *exception) -> None:
        # After an error on this rank the others may not call the broadcast.
        modifier_rank = self._modifier_rank if exception[0] is None else -1
        while self._tickets:
            engine, ticket = self._tickets.pop()
            engine.release(ticket, modifier_rank)
        _C.release_deferred(self._deferred, modifier_rank)


gathered = GatheredParameters


def register_external_parameter(module: torch.nn.Module, parameter: torch.nn.Parameter) -> None:
    """Does nothing: an operator gathers the parameters that it uses, in the code of any module."""


def unregister_external_parameter(module: torch.nn.Module, parameter: torch.nn.Parameter) -> None:
    """Does nothing, as `register_external_parameter`."""
