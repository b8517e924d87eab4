"""Zeropage trains models whose state does not fit on one device. It replaces the core of DeepSpeed's ZeRO.

import zeropage as deepspeed
model_engine, optimizer, _, _ = deepspeed.initialize(model=model, config="ds_config.json")
"""

import importlib
import os

import torch  # noqa: F401  (the C++ module needs torch's libraries loaded)

from . import built_for, errors, exit_codes  # noqa: F401  (built_for first: it refuses another torch)
from ._C import version as __version__
from .initialize import add_config_arguments, initialize

if {
    "RANK",
    "OMPI_COMM_WORLD_RANK",
    "PMI_RANK",
    "SLURM_STEP_NUM_TASKS",
} & os.environ.keys():  # a launcher has started this process and reads its exit code
    exit_codes.install()

_LAZY_MODULES = ("comm", "distributed", "lr_schedules", "report", "runtime", "testing", "utils", "zero")
_LAZY_NAMES = {
    "init_distributed": "comm",
    "ZeropageEngine": "engine",
    "DeepSpeedEngine": "engine",
    "plan": "planning",
    "ZeropageOptimizer": "optimizer",
}

__all__ = ["__version__", "add_config_arguments", "errors", "initialize", *_LAZY_MODULES, *_LAZY_NAMES]


def __getattr__(name: str):
    """Submodules and classes are imported when first used, so importing the package is fast."""
    if name in _LAZY_MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _LAZY_NAMES:
        return getattr(importlib.import_module(f".{_LAZY_NAMES[name]}", __name__), name)
    raise AttributeError(f"module 'zeropage' has no attribute {name!r}")
