"""The states of this rank's random generators as tensors: torch's (host and device), Python's and numpy's."""

import json
import random
import sys
from typing import Any

import torch

from .errors import CheckpointError

States = dict[str, torch.Tensor]


def _bytes_tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _text(tensor: torch.Tensor) -> str:
    return bytes(tensor.tolist()).decode()


def random_states(device: torch.device) -> States:
    """The states by name. numpy's only if the script has imported numpy."""
    states = {"torch": torch.get_rng_state(), "python": _bytes_tensor(json.dumps(random.getstate()))}
    if device.type == "cuda":
        states["device"] = torch.cuda.get_rng_state(device)
    if "numpy" in sys.modules:
        kind, keys, *rest = sys.modules["numpy"].random.get_state()
        states["numpy"] = _bytes_tensor(json.dumps([kind, keys.tolist(), *rest]))
    return states


def check_random_states(states: States) -> None:
    """Tests the states on unused generators. The state of a GPU is tested when it is restored. Raises
    CheckpointError."""
    numpy = sys.modules.get("numpy")
    _set(states, torch.Generator(), random.Random(), None if numpy is None else numpy.random.RandomState())


def restore_random_states(states: States, device: torch.device) -> None:
    """Restores `random_states`; generators that it does not have stay unchanged. Raises CheckpointError."""
    numpy = sys.modules.get("numpy")
    _set(states, torch.default_generator, random, None if numpy is None else numpy.random)
    if "device" in states and device.type == "cuda":
        try:
            torch.cuda.set_rng_state(states["device"], device)
        except (TypeError, RuntimeError) as error:
            raise _unusable("device", error) from None


def _set(states: States, torch_generator: torch.Generator, python_generator: Any, numpy_generator: Any) -> None:
    name = "torch"
    try:
        if "torch" in states:
            torch_generator.set_state(states["torch"])
        name = "python"
        if "python" in states:
            version, keys, gauss = json.loads(_text(states["python"]))
            python_generator.setstate((version, tuple(keys), gauss))
        name = "numpy"
        if "numpy" in states and numpy_generator is not None:
            kind, keys, *rest = json.loads(_text(states["numpy"]))
            numpy_generator.set_state((kind, keys, *rest))
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise _unusable(name, error) from None


def _unusable(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"the checkpoint's state of the {name} random generator cannot be used: {error}")
