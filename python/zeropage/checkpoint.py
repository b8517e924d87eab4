"""Checkpoints of an engine. C++ writes the state that it keeps; this module adds the state that only Python has:

buffers, client state, parameter groups, the state of a scheduler object, random generators. A save is one commit, and a
load has two phases (docs/checkpoint-format.md): after a failure the folder or the engine is unchanged.
"""

import json
import os
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from . import _C
from .checkpoint_random import check_random_states, random_states, restore_random_states
from .checkpoint_values import Tensors, decode, encode
from .dataloader import Position, TrainingLoader
from .engine_settings import EngineSettings
from .errors import CheckpointError, UsageError, ZeropageError
from .optimizer import NOT_OF_ENGINE, put_hyperparameters
from .utils import zero_to_fp32
from .wrapped_tensors import inner_of_module


def _persistent_buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The buffers that a state dict has, by name, and the tensors in wrapped parameters."""
    for prefix, child in module.named_modules():
        for name, buffer in child._buffers.items():
            if buffer is not None and name not in child._non_persistent_buffers_set:
                yield (f"{prefix}.{name}" if prefix else name), buffer
    yield from inner_of_module(module)


def _aliases(module: torch.nn.Module) -> dict[str, list[str]]:
    """First name of each tied parameter -> its other names."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {first: rest for first, *rest in names.values() if rest}


def _alike(mine: Any, loaded: Any) -> bool:
    """Whether a hyperparameter may replace another: both are numbers, or tuples of numbers, or neither is a number."""
    if isinstance(mine, (list, tuple)):
        return isinstance(loaded, (list, tuple)) and len(mine) == len(loaded) and all(map(_alike, mine, loaded))
    numbers = (int, float, torch.Tensor)
    return isinstance(loaded, numbers) if isinstance(mine, numbers) else not isinstance(loaded, dict)


class CheckpointingEngine(EngineSettings):
    """The part of the engine that saves and loads."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For copy and pickle. Raises UsageError: ranks, memory and files belong to one engine."""
        raise UsageError(
            "an engine cannot be copied or pickled: copy its model (copy.deepcopy(engine.module)), or save with "
            "engine.save_checkpoint(folder)"
        )

    def save_checkpoint(
        self,
        save_dir: str | os.PathLike,
        tag: str | int | None = None,
        client_state: dict[str, Any] | None = None,
        save_latest: bool = True,
        exclude_frozen_parameters: bool = False,
    ) -> bool:
        """Saves the complete training state as `save_dir/tag` (default: global_step<N>). Collective; returns True.

        client_state: values that `load_checkpoint` returns to the script: numbers, strings, lists, tuples, dicts,
        tensors; only rank 0's are saved. save_latest: False: a load without a tag does not find it.

        With zeropage.async_save it returns when the state is copied; `wait_for_checkpoint` waits for the rest. When
        that fails the next `step`, save, `wait_for_checkpoint` or `destroy` raises.

        Raises CheckpointError (on every rank, with the failures of all; training can continue), UsageError (between
        micro steps).
        """
        tag = f"global_step{self.global_steps}" if tag is None else str(tag)
        self._core.wait_for_device("the copy of state for a checkpoint")
        tensors: Tensors = {}
        host = json.dumps(self._host_state(client_state or {}, tensors, exclude_frozen_parameters), allow_nan=False)
        if self.global_rank != 0:
            tensors = {}
        for name, state in random_states(self.device).items():
            tensors[f"host/{self.global_rank}/{name}"] = state
        folder = os.fspath(save_dir)
        shards = self.optimizer.shards if self._has_optimizer else None
        states = [] if shards is None else shards.state.tensors_to_save()
        tensors |= {} if shards is None else shards.state.whole_to_save(self.global_rank)
        _C.save_checkpoint(
            self._core,
            folder,
            tag,
            save_latest,
            exclude_frozen_parameters,
            _aliases(self.module),
            host,
            tensors,
            states,
        )
        if self.global_rank == 0:
            zero_to_fp32.write_script(folder)
        return True

    def wait_for_checkpoint(self) -> None:
        """Waits for a running save. Raises the CheckpointError of that save."""
        _C.finish_save(self._core)

    def load_checkpoint(
        self,
        load_dir: str | os.PathLike,
        tag: str | int | None = None,
        load_module_strict: bool = True,
        load_optimizer_states: bool = True,
        load_lr_scheduler_states: bool = True,
        load_module_only: bool = False,
        custom_load_fn: Any = None,
    ) -> tuple[str | None, dict[str, Any] | None]:
        """Resumes from a checkpoint of `load_dir`: the one with this tag, or the newest. Collective. Returns (its path,
        its client state), or (None, None) when the folder has none. Any world size and stage can load the checkpoints
        of any other.

        load_module_strict: False: parameters and buffers that only the model or only the checkpoint has are skipped,
        with a warning that lists them. load_optimizer_states: False: moments, step counts, parameter groups, loss scale
        and random generators stay unchanged, and fp32 masters start from the loaded values. load_module_only: only
        parameters and buffers. custom_load_fn: called as custom_load_fn(src=, dst=) to load parameters and buffers of
        the checkpoint, whole and in fp32, into the module. It must do the same on every rank. Not with optimizer
        states.

        Raises CheckpointError on every rank; the engine is then unchanged.
        """
        if custom_load_fn is not None and load_optimizer_states and not load_module_only:
            raise UsageError(
                "load_checkpoint(custom_load_fn=...) cannot tell which optimizer states belong to what the function loads; pass "
                "load_optimizer_states=False or load_module_only=True"
            )
        step = _C.find_checkpoint(self._core, os.fspath(load_dir), None if tag is None else str(tag))
        if step is None:
            if self.global_rank == 0:
                _C.log_warn(f"there is no checkpoint in {os.fspath(load_dir)}: nothing was loaded")
            return None, None
        with_optimizer = load_optimizer_states and not load_module_only and self._has_optimizer
        with_schedule = load_lr_scheduler_states and not load_module_only
        host, problem = self._read(step, load_module_strict and custom_load_fn is None, with_optimizer, with_schedule)
        if custom_load_fn is not None:
            self._load_by(custom_load_fn, step)
        warning = _C.load_checkpoint(
            self._core,
            step,
            load_module_strict,
            custom_load_fn is None,
            with_optimizer,
            with_schedule,
            load_module_only,
            problem,
        )
        self._apply_host_state(host, custom_load_fn is None, with_optimizer, with_schedule)
        if not load_module_only:
            self._continue_data(host["data"])
        if warning and self.global_rank == 0:
            _C.log_warn(f"{step.path}: {warning}")
        return step.path, host["client"]

    def _open_saves(self) -> None:
        """Called at the end of making the engine."""
        own = self._config
        # A process that ends without destroy() still finishes the running save.
        self._at_exit = weakref.finalize(self, _C.finish_save, self._core) if own.async_save else None
        self._preemption = _C.Preemption(self._core, own.preemption_grace_s) if own.preemption_folder else None

    def _heed_saves_and_signals(self) -> None:
        """Called at the end of a boundary step, on all ranks."""
        _C.check_save(self._core)
        if not self._config.preemption_folder or not _C.stop_agreed(self._core):
            return
        self.save_checkpoint(self._config.preemption_folder)
        self.wait_for_checkpoint()
        if self.global_rank == 0:
            _C.log_info(
                f"ended by SIGTERM after step {self.global_steps}; resume from {self._config.preemption_folder}"
            )
        raise SystemExit(0)

    def _close_saves(self) -> None:
        self._preemption = None
        if self._at_exit is not None:
            self._at_exit()  # waits, and raises what went wrong

    def _host_state(self, client_state: dict[str, Any], tensors: Tensors, exclude_frozen: bool) -> dict[str, Any]:
        groups = self.optimizer.param_groups if self._has_optimizer else []
        hyperparameters = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        scheduler = (
            self.lr_scheduler.state_dict()
            if self._client_scheduler and hasattr(self.lr_scheduler, "state_dict")
            else None
        )
        shards = self.optimizer.shards if self._has_optimizer else None
        values = None if shards is None else shards.state.values_of_no_parameter()
        wrapped = dict(inner_of_module(self.module)) if exclude_frozen else {}
        buffers = {name: buffer for name, buffer in _persistent_buffers(self.module) if name not in wrapped}
        return {
            "client": encode(client_state, tensors, "client_state"),
            "optimizer": self.optimizer_name(),
            "groups": encode(hyperparameters, tensors, "the optimizer's param_groups"),
            "optimizer_values": encode(values, tensors, "the optimizer's state"),
            "scheduler": encode(scheduler, tensors, "the scheduler's state_dict"),
            "buffers": encode(buffers, tensors, "buffers"),
            "excluded": list(wrapped),
            "data": self._data_position(),
        }

    def _data_position(self) -> list[int] | None:
        """Epoch and entries of the `training_data` loader; None between epochs and without one."""
        position = getattr(self.training_dataloader, "position", None)
        return None if position is None else [position.epoch, position.entries]

    def _read(
        self, step: _C.Checkpoint, strict: bool, with_optimizer: bool, with_schedule: bool
    ) -> tuple[dict[str, Any], str]:
        """Reads and compares all values that Python will load, and changes nothing. Returns (state, problems)."""
        try:
            stored = json.loads(step.host_json)  # its form was checked when the checkpoint was opened
            keys = ("client", "groups", "optimizer_values", "scheduler", "buffers")
            host = {key: decode(stored.get(key), step.read_tensor) for key in keys}
            host["groups"], host["buffers"] = host["groups"] or [], host["buffers"] or {}
            prefix = f"host/{self.global_rank}/"
            names = [name for name in ("torch", "python", "device", "numpy") if step.has_tensor(prefix + name)]
            host["random"] = {name: step.read_tensor(prefix + name) for name in names}
            if with_optimizer:
                check_random_states(host["random"])
            host["optimizer"] = stored.get("optimizer")
            host["excluded"] = stored.get("excluded", [])
            host["data"] = Position(*stored["data"]) if stored.get("data") else None
            if with_optimizer and self.optimizer.shards is not None:
                host["shards"] = self.optimizer.shards.state.read(step)
                for group, loaded in zip(self.optimizer.param_groups, host["groups"], strict=False):
                    # The checkpoint may be from a C++ engine, whose groups do not have these keys.
                    loaded.update({key: False for key in NOT_OF_ENGINE if key in group and key not in loaded})
            return host, "\n    ".join(self._differences(host, strict, with_optimizer, with_schedule))
        except ZeropageError as error:
            return {}, str(error)

    def _differences(self, host: dict[str, Any], strict: bool, with_optimizer: bool, with_schedule: bool) -> list[str]:
        groups = self.optimizer.param_groups if self._has_optimizer else []
        found = _C.resume_differences(
            buffers={name: list(buffer.shape) for name, buffer in _persistent_buffers(self.module)},
            stored_buffers={name: list(buffer.shape) for name, buffer in host["buffers"].items()},
            optimizer=self.optimizer_name(),
            stored_optimizer=host["optimizer"],
            groups=len(groups),
            stored_groups=len(host["groups"]),
            strict=strict,
            with_optimizer=with_optimizer,
            excluded=set(host["excluded"]),
        )
        if with_optimizer and len(groups) == len(host["groups"]):
            for index, (group, loaded) in enumerate(zip(groups, host["groups"], strict=True)):
                found += [
                    f"parameter group {index} has {key}={group[key]!r}, the checkpoint {loaded[key]!r}, which is no such value"
                    for key in group.keys() & loaded.keys()
                    if not _alike(group[key], loaded[key])
                ]
        if with_optimizer and self.optimizer.shards is None:
            found += [
                f"the checkpoint's parameter group {index} has {key}=True, which the engine's own update does not have; make the optimizer with it, "
                "or pass load_optimizer_states=False"
                for index, loaded in enumerate(host["groups"])
                for key in NOT_OF_ENGINE
                if loaded.get(key)
            ]
        if with_schedule and self._client_scheduler and host["scheduler"] is None:
            found.append(
                "the checkpoint has no state of a scheduler object; pass load_lr_scheduler_states=False to keep yours"
            )
        return found

    def _continue_data(self, position: Position | None) -> None:
        if isinstance(self.training_dataloader, TrainingLoader) and not self.training_dataloader.continue_at(position):
            _C.log_warn(
                "the training_data set has an order of its own (an IterableDataset), so its position in the checkpoint cannot be "
                "restored: the loader starts from the beginning; skip the samples that were used already"
            )

    def _load_by(self, custom_load_fn: Any, step: _C.Checkpoint) -> None:
        """Loads parameters and buffers with a function of the user. Its exception on one rank ends the load on all
        ranks."""
        from .utils.zero_to_fp32 import fp32_state_dict

        with torch.no_grad():
            custom_load_fn(src=fp32_state_dict(step), dst=self.module)

    def _apply_host_state(
        self, host: dict[str, Any], with_buffers: bool, with_optimizer: bool, with_schedule: bool
    ) -> None:
        for name, buffer in _persistent_buffers(self.module):
            if with_buffers and name in host["buffers"]:
                buffer.data.copy_(host["buffers"][name])
        if with_optimizer:
            for group, stored in zip(self.optimizer.param_groups, host["groups"], strict=True):
                put_hyperparameters(group, stored)
            if self.optimizer.shards is not None:
                self.optimizer.shards.state.replace(host["shards"])
                self.optimizer.shards.state.replace_values_of_no_parameter(host["optimizer_values"])
            restore_random_states(host["random"], self.device)
        if not with_schedule:
            return
        if self._client_scheduler:
            try:
                self.lr_scheduler.load_state_dict(host["scheduler"])
            except Exception as error:  # any error that a class of the user raises
                raise CheckpointError(
                    f"{type(self.lr_scheduler).__name__} cannot continue from the state in the checkpoint ({type(error).__name__}: {error}); everything else is loaded; pass load_lr_scheduler_states=False to keep yours"
                ) from error
        elif self._has_optimizer and self._core.scheduled_lrs():
            self.optimizer.pull_hyperparameters()
