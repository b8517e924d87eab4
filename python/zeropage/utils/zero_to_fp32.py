"""Reads the model in a checkpoint as fp32, with the names of `deepspeed.utils.zero_to_fp32`. It needs one process and
no engine.

It reads checkpoints of `save_checkpoint`. `zeropage ckpt export` does the same from the command line.
"""

import argparse
import os
import re
import sys
from typing import Any

import torch

from .. import _C
from ..errors import CheckpointError, ConfigError, ZeropageError

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
Path = str | os.PathLike
_SCRIPT = """#!/usr/bin/env python
# Writes the model in the newest checkpoint of this folder as fp32: zero_to_fp32.py CHECKPOINTS OUTPUT [--tag TAG]
import sys

from zeropage.utils.zero_to_fp32 import main

sys.exit(main(sys.argv[1:]))
"""


class LazyTensor:
    """A tensor that is still in the checkpoint; `contiguous()` reads it."""

    def __init__(self, step: _C.Checkpoint, entry: _C.ModelTensor):
        self._step = step
        self._entry = entry
        self.shape = torch.Size(entry.shape)

    def numel(self) -> int:
        return self.shape.numel()

    def contiguous(self) -> torch.Tensor:
        """The whole tensor, in fp32 if its type is a floating-point type. Raises CheckpointError, IoError."""
        entry = self._entry
        values = self._step.read_tensor(entry.stored)
        if entry.order:
            values = values.permute([entry.order.index(dim) for dim in range(len(entry.order))])
        return (values.float() if values.is_floating_point() else values).contiguous()


def get_fp32_state_dict_from_zero_checkpoint(
    checkpoint_dir: Path, tag: str | int | None = None, exclude_frozen_parameters: bool = False, lazy_mode: bool = False
) -> dict[str, Any]:
    """Parameters and buffers of a checkpoint (default: the newest) by name, on the host, in fp32; tied parameters share
    one tensor.

    lazy_mode: returns `LazyTensor`s, which are read one by one on request. Raises CheckpointError.
    """
    return fp32_state_dict(_open(checkpoint_dir, tag), exclude_frozen_parameters, lazy_mode)


def fp32_state_dict(
    step: _C.Checkpoint, exclude_frozen_parameters: bool = False, lazy_mode: bool = False
) -> dict[str, Any]:
    """The same for a checkpoint that is already open."""
    state: dict[str, Any] = {}
    for entry in _C.model_tensors(step):
        if exclude_frozen_parameters and not entry.trainable and entry.stored.startswith("value/"):
            continue
        lazy = LazyTensor(step, entry)
        value = lazy if lazy_mode else lazy.contiguous()
        state.update(dict.fromkeys([entry.name, *entry.aliases], value))
    return state


def convert_zero_checkpoint_to_fp32_state_dict(
    checkpoint_dir: Path,
    output_dir: Path,
    max_shard_size: str | int = "5GB",
    safe_serialization: bool = True,
    tag: str | int | None = None,
    exclude_frozen_parameters: bool = False,
) -> list[str]:
    """Writes the model as safetensors into a folder, in files of at most `max_shard_size` with an index; returns their
    paths.

    Tied parameters are written once. Memory: a few MB. Raises CheckpointError, ConfigError (safe_serialization=False:
    nothing here writes pickles), IoError (existing files are not replaced).
    """
    if not safe_serialization:
        raise ConfigError(
            "safe_serialization=False asks for a pickle, which is never written; leave it out to get safetensors"
        )
    step = _open(checkpoint_dir, tag)
    return _C.export_model(step, os.fspath(output_dir), _bytes_of(max_shard_size), exclude_frozen_parameters)


def load_state_dict_from_zero_checkpoint(
    model: torch.nn.Module, checkpoint_dir: Path, tag: str | int | None = None
) -> torch.nn.Module:
    """Loads a checkpoint into a module that no engine holds, on the host; returns the module."""
    state = get_fp32_state_dict_from_zero_checkpoint(checkpoint_dir, tag)
    model = model.cpu()
    model.load_state_dict(state, strict=False)
    return model


def write_script(checkpoint_dir: Path) -> None:
    """Writes zero_to_fp32.py into the folder of the checkpoints, where programs expect it. A failure is only a warning:
    the checkpoints do not need it."""
    path = os.path.join(os.fspath(checkpoint_dir), "zero_to_fp32.py")
    try:
        if os.path.exists(path):
            return
        with open(path, "w") as file:
            file.write(_SCRIPT)
    except OSError as error:
        _C.log_warn(f"the checkpoint is saved, but {path} could not be written: {error.strerror}")


def main(arguments: list[str]) -> int:
    """The command of that script."""
    parser = argparse.ArgumentParser(
        prog="zero_to_fp32.py", description="Writes the model in a checkpoint as fp32, in safetensors files."
    )
    parser.add_argument("checkpoint_dir", help="the folder that engine.save_checkpoint was given")
    parser.add_argument("output_dir", help="a folder for the model")
    parser.add_argument("--max_shard_size", default="5GB", help="largest size of a file (default: 5GB)")
    parser.add_argument("--safe_serialization", action="store_true", help="always on: pickles are never written")
    parser.add_argument("-t", "--tag", help="the checkpoint (default: the newest)")
    parser.add_argument("--exclude_frozen_parameters", action="store_true", help="trainable parameters only")
    parser.add_argument("-d", "--debug", action="store_true", help="accepted for compatibility")
    given = parser.parse_args(arguments)
    try:
        files = convert_zero_checkpoint_to_fp32_state_dict(
            given.checkpoint_dir,
            given.output_dir,
            given.max_shard_size,
            tag=given.tag,
            exclude_frozen_parameters=given.exclude_frozen_parameters,
        )
    except (ZeropageError, OSError) as error:
        print(f"zero_to_fp32.py: {error}", file=sys.stderr)
        return 1
    print("\n".join(files))
    return 0


def _open(checkpoint_dir: Path, tag: str | int | None) -> _C.Checkpoint:
    folder = os.fspath(checkpoint_dir)
    path = _C.choose_step(folder, None if tag is None else str(tag))
    if path is None:
        raise CheckpointError(f"there is no checkpoint in {folder}")
    return _C.Checkpoint(path)


def _bytes_of(size: str | int) -> int:
    """5000000000 of "5GB"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(size).strip(), re.IGNORECASE)
    if found is None or found[2].upper() not in _UNITS:
        raise ConfigError(f'max_shard_size: expected a size like "5GB" or a number of bytes, got {size!r}')
    return max(1, int(float(found[1]) * _UNITS[found[2].upper()]))
