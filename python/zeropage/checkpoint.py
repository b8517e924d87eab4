"""Checkpoints of an engine: the state that C++ keeps goes to disk from there; this adds what only Python has.

That is: buffers, client state, parameter groups, the state of a scheduler object, random generators. Saving is one commit and loading has
two phases (docs/checkpoint-format.md): what fails leaves the folder, or the engine, as it was.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import torch

from . import _C
from .checkpoint_random import random_states, restore_random_states
from .checkpoint_values import Tensors, decode, encode
from .errors import CheckpointError, UsageError, ZeropageError


def _persistent_buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The buffers that a state dict has, by name."""
    for prefix, child in module.named_modules():
        for name, buffer in child._buffers.items():
            if buffer is not None and name not in child._non_persistent_buffers_set:
                yield (f"{prefix}.{name}" if prefix else name), buffer


def _aliases(module: torch.nn.Module) -> dict[str, list[str]]:
    """First name of each tied parameter -> its further names."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {first: rest for first, *rest in names.values() if rest}


class CheckpointingEngine:
    """The part of the engine that saves and loads."""

    def save_checkpoint(
        self,
        save_dir: str | os.PathLike,
        tag: str | int | None = None,
        client_state: dict[str, Any] | None = None,
        save_latest: bool = True,
        exclude_frozen_parameters: bool = False,
    ) -> bool:
        """Saves everything that training goes on from, as `save_dir/tag` (default: global_step<N>). Collective; returns True.

        client_state: what the script wants back from `load_checkpoint`: numbers, texts, lists, tuples, dicts, tensors; rank 0's is kept.
        save_latest: False: loading without a tag does not find it.

        Raises CheckpointError (on every rank, with the failures of all; training can go on), UsageError (between micro steps).
        """
        tag = f"global_step{self.global_steps}" if tag is None else str(tag)
        tensors: Tensors = {}
        host = json.dumps(self._host_state(client_state or {}, tensors), allow_nan=False)
        if self.global_rank != 0:
            tensors = {}
        for name, state in random_states(self.device).items():
            tensors[f"host/{self.global_rank}/{name}"] = state
        folder = os.fspath(save_dir)
        _C.save_checkpoint(self._core, folder, tag, save_latest, exclude_frozen_parameters, _aliases(self.module), host, tensors)
        return True

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
        """Goes on from a step of `load_dir`: the tagged, or the newest. Collective. Returns (its path, its client state), or
        (None, None) when the folder has no step. Any world size and stage load what any other has saved.

        load_module_strict: False: parameters and buffers that only one side has are left alone, with a warning that lists them.
        load_optimizer_states: False: moments, step counts, parameter groups, loss scale and random generators stay as they are, and
        fp32 masters start from the loaded values.
        load_module_only: parameters and buffers alone.

        Raises CheckpointError on every rank; the engine is then as it was.
        """
        if custom_load_fn is not None:
            raise UsageError("load_checkpoint(custom_load_fn=...) is not built in this version; load the file into the module yourself")
        path = _C.find_checkpoint(self._core, os.fspath(load_dir), None if tag is None else str(tag))
        if path is None:
            if self.global_rank == 0:
                _C.log_warn(f"there is no checkpoint in {os.fspath(load_dir)}: nothing was loaded")
            return None, None
        with_optimizer = load_optimizer_states and not load_module_only and self.optimizer is not None
        with_schedule = load_lr_scheduler_states and not load_module_only
        step, host, problem = self._open(path, load_module_strict, with_optimizer, with_schedule)
        if step is None:
            raise CheckpointError(problem)
        missing, unexpected = _C.load_checkpoint(
            self._core, step, load_module_strict, with_optimizer, with_schedule, load_module_only, problem
        )
        self._apply_host_state(host, with_optimizer, with_schedule)
        if (missing or unexpected) and self.global_rank == 0:
            _C.log_warn(f"{path}: not in the checkpoint: {missing}; not in the model: {unexpected}")
        return path, host["client"]

    def save_16bit_model(self, save_dir: str | os.PathLike, save_filename: str = "", exclude_frozen_parameters: bool = False) -> bool:
        """Not built in this version. Raises UsageError."""
        raise UsageError("save_16bit_model is not built in this version; save_checkpoint keeps the 16-bit values in its safetensors files")

    def module_state_dict(self, exclude_frozen_parameters: bool = False) -> dict[str, torch.Tensor]:
        """Not built in this version. Raises UsageError."""
        raise UsageError(
            "module_state_dict is not built in this version; take module.state_dict() inside zeropage.zero.GatheredParameters(...)"
        )

    def _host_state(self, client_state: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        hyperparameters = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        scheduler = self.lr_scheduler.state_dict() if self._client_scheduler and hasattr(self.lr_scheduler, "state_dict") else None
        return {
            "client": encode(client_state, tensors, "client_state"),
            "groups": encode(hyperparameters, tensors, "the optimizer's param_groups"),
            "scheduler": encode(scheduler, tensors, "the scheduler's state_dict"),
            "buffers": encode(dict(_persistent_buffers(self.module)), tensors, "buffers"),
        }

    def _open(self, path: str, strict: bool, with_optimizer: bool, with_schedule: bool) -> tuple[Any, dict[str, Any], str]:
        """Reads and compares all that Python will take over, and changes nothing. Returns (step, state, what is wrong)."""
        step = None
        try:
            step = _C.Checkpoint(path)
            stored = json.loads(step.host_json)
            host = {key: decode(stored.get(key), step.read_tensor) for key in ("client", "groups", "scheduler", "buffers")}
            prefix = f"host/{self.global_rank}/"
            names = [name for name in ("torch", "python", "device", "numpy") if step.has_tensor(prefix + name)]
            host["random"] = {name: step.read_tensor(prefix + name) for name in names}
            return step, host, "\n    ".join(self._differences(host, strict, with_optimizer, with_schedule))
        except ZeropageError as error:
            return step, {}, str(error)

    def _differences(self, host: dict[str, Any], strict: bool, with_optimizer: bool, with_schedule: bool) -> list[str]:
        found = []
        buffers = dict(_persistent_buffers(self.module))
        stored = host["buffers"]
        if strict:
            found += [f"buffer '{name}' is in the model, not in the checkpoint" for name in buffers if name not in stored]
            found += [f"buffer '{name}' is in the checkpoint, not in the model" for name in stored if name not in buffers]
        for name, buffer in buffers.items():
            if name in stored and stored[name].shape != buffer.shape:
                found.append(f"buffer '{name}' is {list(buffer.shape)} in the model, {list(stored[name].shape)} in the checkpoint")
        if with_optimizer and len(host["groups"]) != len(self.optimizer.param_groups):
            found.append(
                f"the optimizer has {len(self.optimizer.param_groups)} parameter groups, the checkpoint {len(host['groups'])}; "
                "pass load_optimizer_states=False to keep yours"
            )
        if with_schedule and self._client_scheduler and host["scheduler"] is None:
            found.append("the checkpoint has no state of a scheduler object; pass load_lr_scheduler_states=False to keep yours")
        return found

    def _apply_host_state(self, host: dict[str, Any], with_optimizer: bool, with_schedule: bool) -> None:
        for name, buffer in _persistent_buffers(self.module):
            if name in host["buffers"]:
                buffer.data.copy_(host["buffers"][name])
        if with_optimizer:
            for group, stored in zip(self.optimizer.param_groups, host["groups"], strict=True):
                group.update(stored)
            restore_random_states(host["random"], self.device)
        if not with_schedule:
            return
        if self._client_scheduler:
            self.lr_scheduler.load_state_dict(host["scheduler"])
        elif self.optimizer is not None and self._core.scheduled_lrs():
            self.optimizer.pull_hyperparameters()
