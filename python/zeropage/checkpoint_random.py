"""The states of this rank's random generators as tensors: torch's (host and device), Python's and numpy's."""

import json
import random
import sys

import torch

from .errors import CheckpointError

States = dict[str, torch.Tensor]


def _bytes_tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _text(tensor: torch.Tensor) -> str:
    return bytes(tensor.tolist()).decode()


def random_states(device: torch.device) -> States:
    """The states by name. numpy's only where the script has imported it."""
    states = {"torch": torch.get_rng_state(), "python": _bytes_tensor(json.dumps(random.getstate()))}
    if device.type == "cuda":
        states["device"] = torch.cuda.get_rng_state(device)
    if "numpy" in sys.modules:
        kind, keys, *rest = sys.modules["numpy"].random.get_state()
        states["numpy"] = _bytes_tensor(json.dumps([kind, keys.tolist(), *rest]))
    return states


def restore_random_states(states: States, device: torch.device) -> None:
    """Goes on from `random_states`; generators that are not in it stay as they are. Raises CheckpointError."""
    try:
        if "torch" in states:
            torch.set_rng_state(states["torch"])
        if "python" in states:
            version, keys, gauss = json.loads(_text(states["python"]))
            random.setstate((version, tuple(keys), gauss))
        if "device" in states and device.type == "cuda":
            torch.cuda.set_rng_state(states["device"], device)
        if "numpy" in states and "numpy" in sys.modules:
            kind, keys, *rest = json.loads(_text(states["numpy"]))
            sys.modules["numpy"].random.set_state((kind, keys, *rest))
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the state of a random generator in the checkpoint cannot be used: {error}") from None
