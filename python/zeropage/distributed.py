"""Who the ranks are and how they talk to each other.

1. Ranks come from the launcher's environment variables (`zeropage` and `torchrun` set the same ones), or from mpirun's;
   without them there is one rank. A thread that `testing.run_ranks` started is a rank of its own.
2. CPU ranks of one host talk through shared memory; everything else through torch process groups: for parameters and
   for gradients, one group each for data and for control.
"""

import contextlib
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch

from . import _C
from .errors import ConfigError

_LAUNCH_HINT = (
    "launch with `zeropage --num_gpus=N script.py` or `torchrun --nproc_per_node=N script.py`, which set all of them, "
    "or unset all of them to run as a single rank"
)

# What mpirun calls RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE: Open MPI's, then MPICH's and Intel MPI's.
_MPIRUN_NAMES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS"),
)
_MPIRUN_HINT = (
    "under mpirun on several hosts every rank needs the address and a free port of rank 0's host: "
    "mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500 ..."
)

_joined = itertools.count()  # communicators are made in the same order on all ranks, so the number is part of their name
_this_thread = threading.local()


@dataclass(frozen=True)
class World:
    """This rank's place among the ranks of the job."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int = 1


def mpirun_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the launcher would have set, made from what mpirun set; empty when mpirun did not start this process.

    The ranks of one host agree on a port without talking: it is made from mpirun's name of the job.
    """
    if any(name in environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")):
        return {}
    names = next((names for names in _MPIRUN_NAMES if all(name in environ for name in names)), None)
    if names is None:
        return {}
    made = dict(zip(("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"), (environ[name] for name in names), strict=True))
    made |= {name: environ[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in environ}
    if made["LOCAL_WORLD_SIZE"] == made["WORLD_SIZE"]:
        port = 20000 + int(_job_digest(environ)[:8], 16) % 10000
        made = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **made}
    return made


def world_from_environment(environ: Mapping[str, str] = os.environ) -> World:
    """From RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE (or LOCAL_SIZE), or mpirun's. Raises ConfigError when some are missing."""
    hint = _LAUNCH_HINT
    if mpirun := mpirun_environment(environ):
        environ, hint = mpirun, _MPIRUN_HINT
    found = {name: environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    if not any(value is not None for value in found.values()):
        return World()
    found["LOCAL_WORLD_SIZE"] = environ.get("LOCAL_WORLD_SIZE", environ.get("LOCAL_SIZE"))
    if found["WORLD_SIZE"] != "1":
        found |= {name: environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")}
    missing = [name for name, value in found.items() if value is None]
    if missing:
        given = ", ".join(f"{name}={value}" for name, value in found.items() if value is not None)
        raise ConfigError(f"the environment has {given} but not {', '.join(missing)}: {hint}")
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    try:
        world = World(*(int(found[name]) for name in names))
    except ValueError:
        raise ConfigError(f"expected integers in {', '.join(f'{n}={found[n]}' for n in names)}: {hint}") from None
    if not (0 <= world.rank < world.size and 0 <= world.local_rank < world.local_size <= world.size):
        raise ConfigError(f"the ranks in the environment contradict each other ({world}): {hint}")
    return world


def current_world() -> World:
    """The place of the calling thread's rank."""
    handed_over = getattr(_this_thread, "communicators", None)
    if handed_over is None:
        return world_from_environment()
    rank, size = handed_over.parameters.rank, handed_over.parameters.size
    return World(rank, rank, size, size)


class Communicators(NamedTuple):
    """What an engine talks through."""

    parameters: _C.Communicator
    gradients: _C.Communicator | None = None  # None: one serves both
    saves: _C.Communicator | None = None  # for the thread of zeropage.async_save


@contextlib.contextmanager
def thread_rank(
    communicator: _C.Communicator, reductions: _C.Communicator | None = None, saves: _C.Communicator | None = None
) -> Iterator[None]:
    """Makes the calling thread the rank of `communicator`: engines made inside talk through it (gradients through `reductions`, saves
    in the background through `saves`)."""
    _this_thread.communicators = Communicators(communicator, reductions, saves)
    try:
        yield
    finally:
        del _this_thread.communicators


def choose_device(model: torch.nn.Module, world: World, wanted: str | torch.device | None = None) -> torch.device:
    """The device of this rank: `wanted`, or what ZEROPAGE_DEVICE names, or the accelerator when there is one, else the CPU.

    Without an index ranks of a host take one device each, and share them when they are fewer. Ranks that are threads run where their
    model is unless `wanted` says otherwise. Raises ConfigError when there is no such device.
    """
    if wanted is None and getattr(_this_thread, "communicators", None) is not None:
        return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    source = "device" if wanted is not None else "ZEROPAGE_DEVICE"
    wanted = wanted if wanted is not None else os.environ.get("ZEROPAGE_DEVICE") or None
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if wanted is None:
        device = there or torch.device("cpu")
    else:
        try:
            device = torch.device(wanted)
        except (RuntimeError, TypeError) as error:
            raise ConfigError(f"{source} is {wanted!r}, which is no device: {str(error).splitlines()[0]}") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if there is None or device.type != there.type:
        raise ConfigError(f"{source} is {str(wanted)!r}, but what torch finds here is {there.type if there else 'the CPU alone'}: name that")
    count = torch.accelerator.device_count()
    if device.index is not None and device.index >= count:
        raise ConfigError(f"{source} is {str(wanted)!r}, but there are {count} devices here, counted from 0")
    device = torch.device(device.type, device.index if device.index is not None else world.local_rank % count)
    torch.accelerator.set_device_index(device)
    return device


def make_communicators(config: _C.Config, device: torch.device, world: World) -> Communicators:
    """Joins this rank with its peers. Collective. Raises ConfigError, PeerError, TimeoutError."""
    handed_over = getattr(_this_thread, "communicators", None)
    if handed_over is not None:
        return handed_over
    if config.communicator == _C.CommunicatorKind.MPI:
        raise ConfigError('zeropage.communicator is "mpi", which serves C++ programs; in Python write "auto" or "c10d"')
    one_host_of_cpus = device.type == "cpu" and world.local_size == world.size
    if config.communicator == _C.CommunicatorKind.SHARED_MEMORY and not one_host_of_cpus:
        raise ConfigError(
            f'zeropage.communicator is "shared_memory", which serves CPU ranks of one host; this rank is on {device} with '
            f'{world.local_size} of {world.size} ranks on its host: write "auto" or "c10d"'
        )
    if config.communicator == _C.CommunicatorKind.C10D or not one_host_of_cpus:
        timeout = timedelta(milliseconds=config.timeout_ms)
        init_process_group(device, world, timeout=timeout)
        made = [new_process_groups(device, config.deterministic_reduction, timeout) for _ in range(3 if config.async_save else 2)]
        return Communicators(*made)

    def join() -> _C.Communicator:
        if world.size == 1:
            return _C.make_thread_communicators(1, config.timeout_ms)[0]
        return _C.join_shared_memory(_segment_name(), world.rank, world.size, config.timeout_ms)

    # Pages on a drive are gathered as over a network: in a backward gathers and reductions may come in another order on each rank.
    return Communicators(join(), join() if config.parameters_on_disk else None, join() if config.async_save else None)


def init_process_group(
    device: torch.device,
    world: World,
    backend: str | None = None,
    timeout: timedelta | None = None,
    meeting: dict[str, Any] | None = None,
) -> None:
    """Makes torch's default process group unless there is one: nccl when every rank has its own GPU, what torch has for other accelerators
    on those, else gloo.

    meeting: torch's arguments that say where the ranks meet; None: as the launcher says.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        return
    if backend is None:
        own_gpu = device.type == "cuda" and world.local_size <= torch.cuda.device_count()
        backend = "nccl" if own_gpu else "gloo"
        if device.type not in ("cpu", "cuda"):
            backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
    if meeting is not None:
        pass
    elif world.size == 1:
        meeting = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    elif mpirun := mpirun_environment():
        address = f"tcp://{mpirun['MASTER_ADDR']}:{mpirun['MASTER_PORT']}"
        meeting = {"init_method": address, "rank": world.rank, "world_size": world.size}
    else:
        meeting = {}  # torch reads the launcher's variables itself
    dist.init_process_group(backend, timeout=timeout, **meeting)


def new_process_groups(device: torch.device, deterministic: bool, timeout: timedelta, max_delay_us: int = 0) -> _C.Communicator:
    """A communicator over groups of its own, so that its collectives never mix with the script's. Collective.

    max_delay_us: for tests; every collective is delayed at random by up to this.
    """
    import torch.distributed as dist

    data = dist.new_group(timeout=timeout)
    control = dist.new_group(timeout=timeout, backend="gloo")
    timeout_ms = int(timeout.total_seconds() * 1000)
    return _C.make_c10d_communicator(data, control, device, deterministic, timeout_ms, max_delay_us)


def _segment_name(environ: Mapping[str, str] = os.environ) -> str:
    """A name that the ranks of this job share and no other job of this host has."""
    return f"zp-{os.getuid()}-{_job_digest(environ)}-{next(_joined)}"


def _job_digest(environ: Mapping[str, str]) -> str:
    """Stands for the job: the launcher's token, or what torchrun or mpirun call the job."""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    names += ("PMIX_NAMESPACE", "PMIX_SERVER_URI2")
    identity = environ.get("ZEROPAGE_JOB_TOKEN") or "|".join(environ.get(name, "") for name in names)
    return hashlib.sha256(identity.encode()).hexdigest()[:20]
