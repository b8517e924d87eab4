"""The part of `deepspeed.comm` that scripts use to learn their rank and to set up torch.distributed."""

from datetime import timedelta

import torch

from . import distributed


def init_distributed(
    dist_backend: str | None = None,
    auto_mpi_discovery: bool = True,
    distributed_port: int = 29500,
    verbose: bool = True,
    timeout: timedelta | None = None,
    init_method: str | None = None,
    dist_init_required: bool | None = None,
    config: object = None,
    rank: int = -1,
    world_size: int = -1,
) -> None:
    """Makes torch's default process group for scripts that use torch.distributed themselves; engines do not need it.

    Ranks come from the environment, as the launcher sets it: `auto_mpi_discovery`, `distributed_port`, `init_method`, `rank`
    and `world_size` are there for compatibility.
    """
    world = distributed.current_world()
    if dist_init_required is False:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu", None)
    distributed.init_process_group(device, world, dist_backend, timeout)


def is_initialized() -> bool:
    """Whether torch's default process group exists."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def get_rank() -> int:
    return distributed.current_world().rank


def get_world_size() -> int:
    return distributed.current_world().size


def get_local_rank() -> int:
    return distributed.current_world().local_rank
