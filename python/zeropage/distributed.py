"""The ranks of the job, and how they communicate.

1. The environment variables of the launcher (`zeropage` and `torchrun` set the same ones), mpirun or srun describe the
   ranks. Without them there is one rank. A thread that `testing.run_ranks` started is a rank of its own.
2. CPU ranks of one host communicate through shared memory, and those of several hosts host by host (comm/hosts/). All
   other ranks use torch process groups: for parameters and for gradients, one group each for data and for control.
   With zeropage.shard_ranks there are such communicators for the ranks of a group, and for the replicas of a shard.
"""

import contextlib
import ctypes
import itertools
import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch

from . import _C, gloo_threads
from .errors import ConfigError

_joined = (
    itertools.count()
)  # communicators are made in the same order on all ranks, so the number is part of their name
_default_groups = itertools.count()  # the same on all ranks, too
_this_thread = threading.local()
_groups: weakref.WeakSet[Any] = weakref.WeakSet()  # torch's, made here
_of_communicators: "list[_CommunicatorGroups]" = []


@dataclass(frozen=True)
class World:
    """This rank's place among the ranks of the job."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int = 1


def world_from_environment() -> World:
    """The rank from the variables of the launcher or torchrun, or of mpirun, or of srun. Raises ConfigError when some
    are missing or wrong."""
    return World(*_C.world_from_environment())


def current_world() -> World:
    """The place of the calling thread's rank."""
    handed_over = getattr(_this_thread, "communicators", None)
    if handed_over is None:
        return world_from_environment()
    rank, size = handed_over.parameters.job.rank, handed_over.parameters.job.size
    return World(rank, rank, size, size)


def started_by_launcher() -> bool:
    """Whether this rank is a process that a launcher, mpirun or srun started: not a thread, and not a script that runs
    by itself."""
    return getattr(_this_thread, "communicators", None) is None and ("RANK" in os.environ or current_world().size > 1)


class Communicators(NamedTuple):
    """The communicators of an engine."""

    parameters: _C.Communicator
    gradients: _C.Communicator | None = None  # None: one serves both
    saves: _C.Communicator | None = None  # for the thread of zeropage.async_save


@contextlib.contextmanager
def thread_rank(
    communicator: _C.Communicator, reductions: _C.Communicator | None = None, saves: _C.Communicator | None = None
) -> Iterator[None]:
    """Makes the calling thread the rank of `communicator`: engines that are made inside use it (`reductions` for
    gradients, `saves` for background saves)."""
    _this_thread.communicators = Communicators(communicator, reductions, saves)
    try:
        yield
    finally:
        del _this_thread.communicators


def choose_device(
    model: torch.nn.Module | None, world: World, wanted: str | torch.device | None = None
) -> torch.device:
    """The device of this rank: `wanted`, or the one of ZEROPAGE_DEVICE, or the accelerator if there is one, or the CPU.

    Without an index each rank of a host gets one device, and ranks share devices if there are fewer. Ranks that are
    threads run on the device of their model (None: the CPU) unless `wanted` is given. Raises ConfigError when there is
    no such device.
    """
    if wanted is None and getattr(_this_thread, "communicators", None) is not None:
        parameters = () if model is None else model.parameters()
        return next((parameter.device for parameter in parameters), torch.device("cpu"))
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
        raise ConfigError(
            f"{source} is {str(wanted)!r}, but torch finds only {there.type if there else 'the CPU'} here: use that"
        )
    count = torch.accelerator.device_count()
    if device.index is not None and device.index >= count:
        raise ConfigError(f"{source} is {str(wanted)!r}, but there are {count} devices here, counted from 0")
    device = torch.device(device.type, device.index if device.index is not None else world.local_rank % count)
    torch.accelerator.set_device_index(device)
    return device


def make_communicators(config: _C.Config, device: torch.device, world: World) -> Communicators:
    """Connects this rank with its peers. Collective. Raises ConfigError, PeerError, TimeoutError."""
    handed_over = getattr(_this_thread, "communicators", None)
    if handed_over is not None:
        _check_groups(handed_over.parameters, config)
        return handed_over
    gloo_threads.wait_at_exit()  # also for groups that the script makes itself
    end_unused_groups()
    if config.communicator == _C.CommunicatorKind.MPI:
        raise ConfigError('zeropage.communicator is "mpi", which is for C++ programs; in Python write "auto" or "c10d"')
    one_host_of_cpus = device.type == "cpu" and world.local_size == world.size
    if config.communicator == _C.CommunicatorKind.SHARED_MEMORY and not one_host_of_cpus:
        raise ConfigError(
            f'zeropage.communicator is "shared_memory", which is for CPU ranks of one host; this rank is on {device} with '
            f'{world.local_size} of {world.size} ranks on its host: write "auto" or "c10d"'
        )
    if config.shard_ranks > 0:
        return _make_groups(config, device, world)
    two_sided = config.communicator == _C.CommunicatorKind.C10D or not one_host_of_cpus
    if two_sided and world.size > 1:
        timeout = timedelta(milliseconds=config.timeout_ms)
        init_process_group(device, world, timeout=timeout)
        count = 3 if config.async_save else 2
        # Must be the same on all ranks, although hosts may have different numbers of ranks.
        are_asked = device.type == "cpu" and config.hierarchical_collectives and world.local_size < world.size
        by_hosts = are_asked and _are_a_table(world)
        # A failed save ends no training; the other two are of one step.
        of_training = _aborts_of_job()
        aborts = (of_training, of_training, None)[:count]
        if by_hosts:
            made = [_join_hosts(world, config, of) for of in aborts]
        else:
            made = [new_process_groups(device, config.deterministic_reduction, timeout, aborts=of) for of in aborts]
        parameters = made[0]
        if config.second_shard_ranks > 1:
            parameters = _with_nearby(parameters, config, device, world, timeout, of_training)
        return Communicators(parameters, *made[1:])

    def join(beside: _C.Communicator | None = None) -> _C.Communicator:
        if world.size == 1 and two_sided:
            return _C.make_one_rank_communicator(device, config.timeout_ms)
        if world.size == 1:
            return _C.make_thread_communicators(1, config.timeout_ms)[0]
        aborts: Any = None if beside is None else _C.aborts_of(beside)
        return _C.join_shared_memory(_C.segment_name(next(_joined)), world.rank, world.size, config.timeout_ms, aborts)

    # Pages on a drive are gathered as over a network: in a backward, gathers and reductions may have a different order
    # on each rank.
    parameters = join()
    gradients = join(parameters) if config.parameters_on_disk else None
    return Communicators(parameters, gradients, join() if config.async_save else None)


def _check_groups(communicator: _C.Communicator, config: _C.Config) -> None:
    """For threads as ranks, whose communicators were made before the configuration was known. Raises ConfigError."""
    size = communicator.size if communicator.size < communicator.job.size else 0
    if config.shard_ranks != size:
        raise ConfigError(
            f"zeropage.shard_ranks: expected {size}, because the ranks were started in groups of so many (0: no groups), "
            f"got {config.shard_ranks}; give run_ranks the same number"
        )


def _make_groups(config: _C.Config, device: torch.device, world: World) -> Communicators:
    """Connects the ranks for hybrid sharding. Collective. Raises ConfigError."""
    place = (world.rank, world.local_rank, world.size, world.local_size, config.shard_ranks)
    rest = (config.deterministic_reduction, config.timeout_ms)
    on_one_host = (
        device.type == "cpu" and config.communicator != _C.CommunicatorKind.C10D and world.local_size == world.size
    )
    if not on_one_host:
        init_process_group(device, world, timeout=timedelta(milliseconds=config.timeout_ms))

    def make_aborts() -> Any:
        if not on_one_host:
            return _aborts_of_job()
        return _C.join_shared_aborts(_C.segment_name(next(_joined)), world.rank, world.size, config.timeout_ms)

    def join(aborts: Any) -> _C.Communicator:
        number = next(_joined)
        name = _C.segment_name(number)
        if on_one_host:
            return _C.join_shared_groups(name, *place, *rest, aborts)
        store = _store_of_job(f"groups{number}")
        if store is None:
            raise ConfigError(
                "zeropage.shard_ranks: the default process group of torch.distributed, which the script has made, has no "
                "store by which the ranks of a group could find each other: make it with nccl or gloo"
            )
        if device.type != "cpu":
            return _make_device_groups(config, device, world, store, aborts)
        communicator, *groups = _C.join_groups(store, *place, name, *rest, aborts)
        _keep_until_unused(communicator, groups, store, world.size)
        return communicator

    of_training = make_aborts()
    saves = join(make_aborts()) if config.async_save else None  # a failed save ends no training
    return Communicators(join(of_training), join(of_training), saves)


def _make_device_groups(
    config: _C.Config, device: torch.device, world: World, store: Any, aborts: Any
) -> _C.Communicator:
    """The ranks of a group, and the replicas of a shard, over process groups. Collective. store: of all ranks, for when
    the groups end. aborts: communicators with the same one abort together."""
    count = config.shard_ranks
    timeout = timedelta(milliseconds=config.timeout_ms)
    inside = _new_groups([list(range(first, first + count)) for first in range(0, world.size, count)], world, timeout)
    between = _new_groups([list(range(first, world.size, count)) for first in range(count)], world, timeout)
    communicator = _C.make_c10d_groups(
        (*inside, *between), device, config.deterministic_reduction, config.timeout_ms, aborts
    )
    _keep_until_unused(communicator, (*inside, *between), store, world.size)
    return communicator


def _new_groups(rank_lists: list[list[int]], world: World, timeout: timedelta) -> tuple[Any, Any]:
    """For data and for control, those of the list with this rank. Collective over all ranks."""
    import torch.distributed as dist

    data = control = None
    for ranks in rank_lists:
        made = dist.new_group(ranks, timeout=timeout), dist.new_group(ranks, timeout=timeout, backend="gloo")
        if world.rank in ranks:
            data, control = made
    return data, control


def _store_of_job(name: str) -> Any:
    """A part of the store of all ranks; None if their process group has no store, as MPI's."""
    import torch.distributed as dist

    store = _C.store_of(dist.group.WORLD)
    return dist.PrefixStore(f"zeropage/{name}", store) if store is not None else None


def _aborts_of_job() -> Any:
    """What communicators share that abort together; None if the ranks have no store. Every rank calls this for the same
    communicators."""
    store = _store_of_job(f"aborts{next(_joined)}")
    return None if store is None else _C.store_aborts(store)


def _are_a_table(world: World) -> bool:
    """Whether every host has the same number of ranks, with consecutive numbers. Collective."""
    store = _store_of_job(f"hosts{next(_joined)}")
    hosts, _ = _C.agree_on_hosts(store, world.rank, world.local_rank, world.size, world.local_size)
    return hosts > 1


def _join_hosts(world: World, config: _C.Config, aborts: Any) -> _C.Communicator:
    """A communicator that works host by host. Its process groups are not groups of torch.distributed, but end like
    those. Collective."""
    number = next(_joined)
    store = _store_of_job(f"hosts{number}")
    communicator, *groups = _C.join_hosts(
        store,
        world.rank,
        world.size,
        world.local_size,
        _C.segment_name(number),
        config.deterministic_reduction,
        config.timeout_ms,
        aborts,
    )
    _keep_until_unused(communicator, groups, store, world.size)
    return communicator


def _with_nearby(
    communicator: _C.Communicator,
    config: _C.Config,
    device: torch.device,
    world: World,
    timeout: timedelta,
    aborts: Any,
) -> _C.Communicator:
    """The same with the groups of zero_hpz_partition_size. Collective. Raises ConfigError."""
    count = config.second_shard_ranks
    place = (world.rank, world.local_rank, world.size, world.local_size, count)
    if device.type == "cpu":
        return _C.join_nearby(communicator, *place, _C.segment_name(next(_joined)))
    _C.check_nearby(*place)
    rank_lists = [list(range(first, first + count)) for first in range(0, world.size, count)]
    data, control = _new_groups(rank_lists, world, timeout)
    deterministic = config.deterministic_reduction
    nearby = _C.make_c10d_communicator(data, control, device, deterministic, config.timeout_ms, aborts=aborts)
    _keep_until_unused(nearby, (data, control), _C.store_of(control), count)
    return _C.with_nearby(communicator, nearby)


def init_process_group(
    device: torch.device,
    world: World,
    backend: str | None = None,
    timeout: timedelta | None = None,
    meeting: dict[str, Any] | None = None,
) -> None:
    """Makes torch's default process group unless there is one: nccl if every rank has a GPU of its own, torch's backend
    for other accelerators on those, otherwise gloo.

    meeting: torch's arguments for the address of the ranks; None: the address of the launcher.
    """
    import torch.distributed as dist

    gloo_threads.wait_at_exit()  # also for a group that the script has made
    if dist.is_initialized():
        return
    if meeting is None:
        meeting = {"store": _store(world, timeout), "rank": world.rank, "world_size": world.size}
    if backend is None:
        backend = "gloo"
        if device.type == "cuda":
            meeting = _with_store(meeting, timeout)
            backend = "nccl" if _own_gpus(device, **meeting) else "gloo"
        elif device.type != "cpu":
            backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
    dist.init_process_group(backend, timeout=timeout, **meeting)
    _remember(dist.group.WORLD)


def _with_store(meeting: dict[str, Any], timeout: timedelta | None) -> dict[str, Any]:
    """The same arguments with a store, which torch makes from an address."""
    from torch.distributed.rendezvous import rendezvous

    if "init_method" not in meeting:
        return meeting
    limit = {} if timeout is None else {"timeout": timeout}
    store, rank, world_size = next(rendezvous(meeting["init_method"], meeting["rank"], meeting["world_size"], **limit))
    return {"store": store, "rank": rank, "world_size": world_size}


def _own_gpus(device: torch.device, store: Any, rank: int, world_size: int) -> bool:
    """Whether no two ranks share a GPU. Collective.

    Compares the GPUs' UUIDs, because the number and the indices of a rank's visible GPUs may differ between ranks
    (Slurm's --gpus-per-task=1).
    """
    store.set(f"zeropage/gpu/{rank}", str(torch.cuda.get_device_properties(device).uuid))
    keys = [f"zeropage/gpu/{other}" for other in range(world_size)]
    uuids = store.multi_get(keys) if store.has_extended_api() else [store.get(key) for key in keys]
    return len(set(uuids)) == world_size


def _remember(*groups: Any) -> None:
    """A forked child does not have the threads of a group, and destroying the group would wait forever for them. So the
    groups are never destroyed there."""
    gloo_threads.wait_at_exit()
    if not len(_groups):
        os.register_at_fork(after_in_child=_keep_groups)
    _groups.update(groups)


def _keep_groups() -> None:
    for group in _groups:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
    _of_communicators.clear()


@dataclass
class _CommunicatorGroups:
    """Process groups that only one communicator uses."""

    groups: tuple[Any, ...]
    store: Any
    size: int
    communicator: _C.CommunicatorWatch
    told: bool = False  # whether the other ranks were told that this one does not use them any more

    def is_used(self) -> bool:
        """Whether this rank uses them, or another one, which would lose a peer during a collective."""
        if not self.communicator.is_over:
            return True
        try:
            ranks_done = self.store.add("zeropage/done", 0 if self.told else 1)
        except RuntimeError:
            return False  # the process with the store has ended, and so have the groups
        self.told = True
        return ranks_done < self.size

    def end(self) -> None:
        import torch.distributed as dist

        for group in self.groups:
            with contextlib.suppress(ValueError):  # the script has ended all groups
                dist.destroy_process_group(group)


def end_unused_groups(wait_s: float = 0.0) -> None:
    """Ends the process groups of communicators that no rank uses any more: their threads, connections and files.

    wait_s: how long to wait for ranks that still use those of this rank. A later call ends the remaining groups.
    """
    end = time.monotonic() + wait_s
    while True:
        for made in [made for made in _of_communicators if not made.is_used()]:
            _of_communicators.remove(made)
            made.end()
        if time.monotonic() >= end or not any(made.told for made in _of_communicators):
            return
        time.sleep(0.002)


def _store(world: World, timeout: timedelta | None) -> Any:
    """The store through which the ranks of torch's groups connect."""
    import torch.distributed as dist

    if world.size == 1:
        return dist.HashStore()
    timeout_ms = int(timeout.total_seconds() * 1000) if timeout is not None else _C.default_timeout_ms
    store = _C.job_store(world.rank, world.local_rank, world.size, world.local_size, timeout_ms)
    # torch numbers its groups from 0 again after destroy_process_group, but the addresses of earlier groups are still
    # in the store.
    return dist.PrefixStore(f"default_group{next(_default_groups)}", store)


def new_process_groups(
    device: torch.device,
    deterministic: bool,
    timeout: timedelta,
    max_delay_us: int = 0,
    aborts: Any = None,
) -> _C.Communicator:
    """A communicator over groups of its own, so that its collectives never mix with the script's. Collective.

    max_delay_us: for tests; every collective has a random delay of at most this time. aborts: communicators with the
    same one abort together.
    """
    import torch.distributed as dist

    data = dist.new_group(timeout=timeout)
    control = dist.new_group(timeout=timeout, backend="gloo")
    timeout_ms = int(timeout.total_seconds() * 1000)
    communicator = _C.make_c10d_communicator(data, control, device, deterministic, timeout_ms, max_delay_us, aborts)
    _keep_until_unused(communicator, (data, control), _C.store_of(control), data.size())
    return communicator


def _keep_until_unused(communicator: _C.Communicator, groups: Iterable[Any], store: Any, size: int) -> None:
    """Keeps groups that `communicator` uses until all `size` ranks of the store do not use theirs any more."""
    _remember(*groups)
    watch = _C.CommunicatorWatch(communicator)
    _of_communicators.append(_CommunicatorGroups(tuple(groups), store, size, watch))
