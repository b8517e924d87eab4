"""`"stage": "auto"`: what a configuration leaves to the engine, chosen from the real model and free memory."""

import os
import struct

import torch

from . import _C
from .distributed import World

_CGROUP = "/sys/fs/cgroup"


def choose_automatic(
    config: _C.Config, model: torch.nn.Module, device: torch.device, world: World, communicator: _C.Communicator
):
    """The configuration with values for all that is "auto"; rank 0 says which and why. Collective where there is something to choose."""
    if not config.automatic:
        return config
    parameters = {id(p): p for p in model.parameters()}.values()
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    packing = struct.Struct("<q")
    everyone = packing.iter_unpack(communicator.all_gather_small(packing.pack(free_bytes(device, world.local_size))))
    least = min(value for (value,) in everyone)
    stage, reason = _C.choose_stage(config, world.size, trainable, frozen, least)
    if world.rank == 0:
        _C.log_info(f'zero_optimization.stage: "auto" is {stage} here: {reason}')
    return config.with_planned({"zero_optimization.stage": stage})


def free_bytes(device: torch.device, ranks_of_host: int) -> int:
    """Memory that this rank can still take: the device's, or its part of the host's, of what the control group allows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    try:
        limit = _read(os.path.join(_CGROUP, "memory.max"))
        if limit != "max":
            available = min(available, int(limit) - int(_read(os.path.join(_CGROUP, "memory.current"))))
    except OSError:
        pass  # no control groups of the second version: no limit to be seen
    return max(available, 0) // ranks_of_host


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()
