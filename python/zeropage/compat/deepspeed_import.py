"""`zeropage ckpt import`: converts a checkpoint of DeepSpeed to one that `load_checkpoint` can load.

Python's pickles are not trusted: another process reads them (pickle_process.py), and this module checks its answers.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import _C
from ..checkpoint_values import encode
from ..errors import CheckpointError, ConfigError, UsageError, ZeropageError
from .deepspeed_checkpoint import DeepSpeedStep, Pieces, joined
from .pickle_process import FOREIGN, PickleProcess, StoredTensor

_HYPERPARAMETERS = "lr betas eps weight_decay momentum dampening nesterov lr_decay bias_correction decoupled_weight_decay initial_lr".split()
_TAG_LIMIT_BYTES = 4096
_READ_BY = {"exp_avg", "exp_avg_sq", "sum", "momentum_buffer"}


def main(arguments: list[str]) -> int:
    """The command. Raises ConfigError, CheckpointError, OSError."""
    parser = argparse.ArgumentParser(
        prog="zeropage ckpt import",
        description="Converts a DeepSpeed checkpoint (ZeRO stages 1 to 3): parameters, fp32 masters, moments, step counts, learning "
        "rate schedule, loss scale, counters and client state.",
    )
    parser.add_argument(
        "source", metavar="DEEPSPEED", type=Path, help="the folder that was given to DeepSpeed's save_checkpoint"
    )
    parser.add_argument(
        "output", metavar="FOLDER", type=Path, help="the folder for load_checkpoint; made if it is missing"
    )
    parser.add_argument("-t", "--tag", help="the checkpoint; default: the one that the file `latest` names")
    parser.add_argument("--read_pickle", action="store_true", help="needed: DeepSpeed's files are pickles")
    options = parser.parse_args(arguments)
    if not options.read_pickle:
        raise ConfigError(
            f"{options.source} contains pickles, a format that can run code when it is read. They are read in a process of their own, with "
            "torch's weights_only, which builds only tensors and plain values; add --read_pickle to do that"
        )
    with PickleProcess() as reader:
        path, notes = import_step(_step_folder(options.source, options.tag), options.output, reader)
    print(path)
    for note in notes:
        print(f"left out: {note}", file=sys.stderr)
    return 0


def import_step(folder: Path, output: Path, reader: PickleProcess) -> tuple[str, list[str]]:
    """Makes a checkpoint in `output` from DeepSpeed's in `folder`. Returns its path, and a list of what was not
    imported.

    Memory: the largest parameter. Raises CheckpointError.
    """
    notes: list[str] = []
    host: dict[str, torch.Tensor] = {}
    try:
        step = DeepSpeedStep(folder, reader)
        sources, types = _tensors(step)
        manifest = _manifest(step, folder.name, host, notes)
    except ZeropageError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: the files do not have DeepSpeed's layout of ZeRO stages 1 to 3 ({type(error).__name__}: {error}); is the "
            "checkpoint complete, and saved by DeepSpeed itself?"
        ) from error
    sources |= {name: partial(torch.Tensor.detach, value) for name, value in host.items()}
    tensors = [(name, dtype, list(shape)) for name, (dtype, shape) in types.items()]
    tensors += [(name, value.dtype, list(value.shape)) for name, value in host.items()]
    notes += sorted(
        {f"optimizer state '{kind}'" for p in step.parameters.values() for kind in p.states if kind not in _READ_BY}
    )
    return _C.write_imported_step(str(output), manifest, tensors, lambda name: sources[name]()), notes


def _step_folder(source: Path, tag: str | None) -> Path:
    if tag is None and not (source / "latest").is_file():
        if any(source.glob("*model_states.pt")):
            return source
        raise ConfigError(
            f"{source}: expected a file `latest`, or the folder of a checkpoint; name a checkpoint with --tag"
        )
    named_by = "--tag" if tag is not None else f"{source}/latest"
    if tag is None:
        with open(source / "latest", "rb") as file:
            tag = file.read(_TAG_LIMIT_BYTES).decode(errors="replace").strip()
    try:
        _C.check_tag(tag)
    except UsageError as error:
        raise ConfigError(f"{named_by}: {error}") from None
    folder = source / tag
    if not folder.is_dir():
        there = sorted(path.name for path in source.iterdir() if path.is_dir())
        raise ConfigError(f"{folder}: there is no such checkpoint; there are {there}")
    return folder


def _joined_as(pieces: Pieces, dtype: torch.dtype) -> torch.Tensor:
    return joined(pieces).to(dtype)


def _tensors(
    step: DeepSpeedStep,
) -> tuple[dict[str, Callable[[], torch.Tensor]], dict[str, tuple[torch.dtype, torch.Size]]]:
    """By name: a function that reads a tensor, and its type and shape. Nothing is read yet."""
    sources: dict[str, Callable[[], torch.Tensor]] = {}
    types: dict[str, tuple[torch.dtype, torch.Size]] = {}
    for name, parameter in step.parameters.items():
        compute = step.module[name].dtype if name in step.module else torch.float32
        sources[f"value/{name}"] = partial(_joined_as, parameter.master, compute)
        types[f"value/{name}"] = compute, parameter.shape
        kept = {kind: pieces for kind, pieces in parameter.states.items() if kind in _READ_BY}
        if compute != torch.float32:
            kept["master"] = parameter.master
        for kind, pieces in kept.items():
            sources[f"{kind}/{name}"] = partial(_joined_as, pieces, torch.float32)
            types[f"{kind}/{name}"] = torch.float32, parameter.shape
    for name, (shape, pieces) in step.frozen.items():
        sources[f"value/{name}"] = partial(joined, pieces)
        types[f"value/{name}"] = pieces[0][0].dtype if pieces else torch.float32, shape
    return sources, types


def _manifest(step: DeepSpeedStep, tag: str, host: dict[str, torch.Tensor], notes: list[str]) -> Any:
    manifest = _C.Manifest()
    manifest.tag, manifest.stage, manifest.frozen_excluded = tag, step.stage, not step.frozen
    further: dict[str, list[str]] = {}
    for alias, name in step.aliases.items():
        further.setdefault(name, []).append(alias)
    trained = [(name, True, parameter.updates) for name, parameter in step.parameters.items()]
    manifest.parameters = [
        _C.ParameterRecord(name, further.get(name, []), trainable, updates)
        for name, trainable, updates in [*trained, *((name, False, 0) for name in step.frozen)]
    ]
    config = step.model.get("ds_config") or {}
    scheduler = step.model.get("lr_scheduler")
    by_count = isinstance(scheduler, dict) and scheduler.keys() == {"last_batch_iteration"}
    global_steps, skipped_steps = (_count(step, key) for key in ("global_steps", "skipped_steps"))
    accumulation = config.get("gradient_accumulation_steps", 1)
    micro_steps = global_steps * accumulation if isinstance(accumulation, int) else 0
    iteration = int(scheduler["last_batch_iteration"]) if by_count else None
    manifest.training = _C.TrainingState(global_steps, skipped_steps, 0, micro_steps, iteration, _loss_scale(step))
    manifest.config_json = json.dumps(_without_foreign(config, "ds_config", []), default=str)
    buffers = {
        name: step.module[name].read().view(step.module[name].shape) for name in step.model.get("buffer_names") or ()
    }
    client = {
        key: _without_foreign(value, f"client_state['{key}']", notes) for key, value in step.client_state().items()
    }
    state = {
        "client": encode(_read_all(client), host, "client_state"),
        "optimizer": _optimizer_name(config),
        "groups": encode([_hyperparameters(group) for group in step.base_groups()], host, "param_groups"),
        "scheduler": encode(
            None if by_count else _read_all(_without_foreign(scheduler, "lr_scheduler", notes)), host, "lr_scheduler"
        ),
        "buffers": encode(buffers, host, "buffers"),
    }
    manifest.host_json = json.dumps(state, allow_nan=False)
    return manifest


def _count(step: DeepSpeedStep, key: str) -> int:
    value = step.model.get(key)
    if not isinstance(value, int) or value < 0:
        raise CheckpointError(f"{step.folder}: expected a count under '{key}', got {value!r}")
    return value


def _loss_scale(step: DeepSpeedStep) -> Any:
    """The pickled state of DeepSpeed's DynamicLossScaler; None for a fixed scale."""
    scaler = step.optimizer.get("loss_scaler")
    state = scaler.get("state") if isinstance(scaler, dict) else None
    if not isinstance(state, dict) or not state.get("dynamic"):
        return None
    try:
        numbers = int(state["cur_iter"]), int(state["last_overflow_iter"]), int(state["cur_hysteresis"])
        return _C.LossScaleState(float(state["cur_scale"]), *numbers)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{step.folder}: the loss scale has no readable {error}") from None


def _optimizer_name(config: dict[str, Any]) -> str | None:
    section = config.get("optimizer")
    name = section.get("type") if isinstance(section, dict) else None
    return name.lower() if isinstance(name, str) else None


def _hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    return _read_all({key: group[key] for key in _HYPERPARAMETERS if key in group})


def _without_foreign(value: Any, where: str, notes: list[str]) -> Any:
    """The value, with None instead of objects that only Python could rebuild."""
    if isinstance(value, dict):
        if FOREIGN in value:
            notes.append(f"{where}, a {value[FOREIGN]}")
            return None
        return {key: _without_foreign(held, f"{where}[{key!r}]", notes) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_without_foreign(held, where, notes) for held in value)
    return value


def _read_all(value: Any) -> Any:
    if isinstance(value, StoredTensor):
        return value.read().view(value.shape)
    if isinstance(value, dict):
        return {key: _read_all(held) for key, held in value.items()}
    return type(value)(map(_read_all, value)) if isinstance(value, (list, tuple)) else value
