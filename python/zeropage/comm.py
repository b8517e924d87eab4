"""`deepspeed.comm`: ranks, and the collectives of torch.distributed with the same names.

The engine does not use this module: it has its own communicators.
"""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from . import distributed
from .compat import accelerate_on_cpus

# Names that torch.distributed has, too.
_TORCH_NAMES = (
    "P2POp ProcessGroup ReduceOp Work all_gather all_gather_into_tensor all_gather_object all_reduce all_to_all all_to_all_single barrier "
    "batch_isend_irecv broadcast broadcast_object_list destroy_process_group gather gather_object get_backend get_global_rank "
    "get_process_group_ranks irecv isend is_available monitored_barrier new_group recv reduce reduce_scatter reduce_scatter_tensor scatter "
    "scatter_object_list send"
).split()
_OTHER_NAMES = {
    "allgather_fn": "all_gather_into_tensor",
    "inference_all_reduce": "all_reduce",
    "get_all_ranks_from_group": "get_process_group_ranks",
    "reduce_scatter_fn": "reduce_scatter_tensor",
}


def __getattr__(name: str) -> Any:
    """The collectives of torch.distributed."""
    if name in _TORCH_NAMES or name in _OTHER_NAMES:
        return getattr(dist, _OTHER_NAMES.get(name, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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

    dist_backend: None: nccl if every rank has a GPU of its own, otherwise gloo. init_method: where the ranks connect,
    as in torch.distributed ("file://...", "tcp://..."); None: the address of the launcher. rank, world_size: with
    init_method; -1: from the environment. dist_init_required: False: does nothing. auto_mpi_discovery,
    distributed_port, verbose, config: accepted for compatibility; the ranks are those of the environment variables of
    the launcher or of mpirun.

    Raises ConfigError when ZEROPAGE_DEVICE names a device that does not exist.
    """
    if dist_init_required is False:
        return
    world = distributed.current_world()
    meeting = None
    if init_method is not None:
        place = {"rank": world.rank if rank < 0 else rank, "world_size": world.size if world_size < 0 else world_size}
        meeting = {"init_method": init_method, **place}
    make_default_group(distributed.choose_device(None, world), world, timeout, dist_backend, meeting)


def make_default_group(
    device: torch.device,
    world: distributed.World,
    timeout: timedelta | None,
    backend: str | None = None,
    meeting: dict[str, Any] | None = None,
) -> None:
    """As distributed.init_process_group; also informs Accelerate."""
    distributed.init_process_group(device, world, backend, timeout, meeting)
    accelerate_on_cpus.tell_backend()


def is_initialized() -> bool:
    """Whether torch's default process group exists."""
    exists = dist.is_available() and dist.is_initialized()
    if exists:
        accelerate_on_cpus.tell_backend()  # Accelerate calls this before it would call init_distributed
    return exists


def get_rank(group: Any = None) -> int:
    """The number of this rank; its number in `group` if one is given."""
    return distributed.current_world().rank if group is None else dist.get_rank(group)


def get_world_size(group: Any = None) -> int:
    return distributed.current_world().size if group is None else dist.get_world_size(group)


def get_local_rank() -> int:
    return distributed.current_world().local_rank


def get_world_group() -> Any:
    """torch's default process group."""
    return dist.group.WORLD


def has_all_gather_into_tensor() -> bool:
    return True


has_reduce_scatter_tensor = has_coalescing_manager = has_all_reduce_coalesced = has_all_gather_into_tensor


class _Works:
    """Several transfers with one wait."""

    def __init__(self, works: list[Any]):
        self._works = works

    def wait(self) -> None:
        for work in self._works:
            work.wait()


def all_reduce_coalesced(
    tensors: list[torch.Tensor], op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False
) -> _Works | None:
    """Reduces each tensor in place. async_op: returns an object with a wait method."""
    works = [dist.all_reduce(tensor, op, group, async_op) for tensor in tensors]
    return _Works(works) if async_op else None


def all_gather_coalesced(
    outputs: list[torch.Tensor], inputs: list[torch.Tensor], group: Any = None, async_op: bool = False
) -> _Works | None:
    """outputs[i] [ranks * n]: inputs[i] [n] of every rank. async_op: returns an object with a wait method."""
    works = [dist.all_gather_into_tensor(out, part, group, async_op) for out, part in zip(outputs, inputs, strict=True)]
    return _Works(works) if async_op else None


def log_summary(show_straggler: bool = False) -> None:
    """Does nothing: the section comms_logger of an engine's configuration times and prints its collectives."""


def initialize_mesh_device(mesh_shape: tuple[int, ...], mesh_dim_names: tuple[str, ...]) -> Any:
    """torch's device mesh of this shape."""
    device = distributed.choose_device(None, distributed.current_world())
    return dist.init_device_mesh(device.type, mesh_shape, mesh_dim_names=mesh_dim_names)
