"""Chooses the values of "auto" keys from the real model and free memory."""

import torch

from . import _C
from ._C import free_memory
from .distributed import World


def choose_automatic(
    config: _C.Config, model: torch.nn.Module, device: torch.device, world: World, communicator: _C.Communicator
) -> _C.Config:
    """The configuration with values for all "auto" keys. Rank 0 prints the values and the reasons. Collective if there
    is something to choose."""
    if not config.automatic:
        return config
    parameters = list({id(p): p for p in model.parameters()}.values())
    numels, trainable = [p.numel() for p in parameters], [p.requires_grad for p in parameters]
    return _C.choose_automatic(config, numels, trainable, free_memory(device, world.local_size), communicator)
