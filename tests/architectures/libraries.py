"""Imports one of the libraries whose architectures are tried, from a folder that no other test uses (tools/setup.sh
fills it)."""

import importlib
import logging
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

LIBRARIES = ("transformers", "diffusers", "timm")
FOLDER = Path(sys.prefix) / "share" / "architectures"


def _import_torchvision() -> None:
    """torchvision without its operators, which are built for another torch than one for CPUs. No model here needs
    them."""
    register = torch.library.register_fake

    def without_operators(name: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(name, str) and name.startswith("torchvision::") and not arguments:
            return lambda function: function
        return register(name, *arguments, **options)

    torch.library.register_fake = without_operators
    try:
        importlib.import_module("torchvision")
    finally:
        torch.library.register_fake = register


def load(library: str) -> ModuleType:
    """The module of this folder with `names()` and `build(name)` for a library. Nothing is fetched from a hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if not (FOLDER / "torchvision").is_dir():
        raise ModuleNotFoundError(
            f"{FOLDER} has no torchvision: run tools/setup.sh, which installs what the sweep needs there"
        )
    sys.path.append(str(FOLDER))
    _import_torchvision()
    return importlib.import_module(f"{library}_models")
