"""Torch's process groups that a script makes and destroys, before and between those of zeropage."""

import gc
import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerator
import pytest
import torch
from processes import run_processes
from training import config_of, small_net, train_engine

import zeropage
from zeropage import distributed


def make_and_destroy_groups(late_rank: int) -> list[float]:
    """One group of torch's own, then three of zeropage; `late_rank` destroys each later than the other. Their sums over
    the ranks."""
    import torch.distributed as dist

    import zeropage.comm as comm

    sums: list[Any] = []
    for make in (dist.init_process_group, comm.init_distributed, comm.init_distributed, comm.init_distributed):
        make("gloo")
        value = torch.tensor(dist.get_rank() + 1.0)
        dist.all_reduce(value)
        sums.append(value.item())
        if dist.get_rank() == late_rank:
            time.sleep(0.3)
        dist.destroy_process_group()
    return sums


def test_groups_are_made_again_after_they_were_destroyed(tmp_path: Path):
    """Catches a rank that connects to the others through the store, or by the addresses, of groups that were destroyed
    before."""
    for late_rank in (0, 1):
        arguments = json.dumps({"late_rank": late_rank})
        assert (
            run_processes(2, "test_process_groups", "make_and_destroy_groups", arguments, tmp_path) == [[3.0] * 4] * 2
        )


def end_with_a_tensor_of_gloo() -> None:
    """Ends right after a collective of a tensor with a Python object, which gloo's thread releases last: the thread
    does not get Python's lock from the main thread before Python ends."""
    import torch.distributed as dist

    import zeropage.comm as comm

    comm.init_distributed("gloo")
    sys.setswitchinterval(100)
    dist.all_reduce(torch.ones(8))


def test_a_script_that_does_not_destroy_its_groups_ends_well(tmp_path: Path):
    """Catches ranks that are aborted while Python ends: without the wait, every second pair of ranks."""
    folders = [tmp_path / str(pair) for pair in range(5)]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(4) as pairs:
        list(pairs.map(lambda folder: run_processes(2, __name__, "end_with_a_tensor_of_gloo", "{}", folder), folders))


def use_torch_after_initialize(dist_init_required: bool | None) -> list[Any]:
    """The indices that a DistributedSampler gives this rank and a sum over the ranks; or that there is no default
    group."""
    import torch.distributed as dist

    config = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    zeropage.initialize(model=torch.nn.Linear(2, 2), config=config, dist_init_required=dist_init_required)
    if not dist.is_initialized():
        return []
    value = torch.tensor(dist.get_rank() + 1.0)
    dist.all_reduce(value)
    return [list(torch.utils.data.DistributedSampler(range(4), shuffle=False)), value.item()]


def test_scripts_use_torchs_collectives_after_initialize(tmp_path: Path):
    """Catches CPU ranks whose DistributedSampler or all_reduce ends in "Default process group has not been
    initialized"."""
    for required, expected in ((None, [[[0, 2], 3.0], [[1, 3], 3.0]]), (False, [[], []])):
        arguments = json.dumps({"dist_init_required": required})
        assert run_processes(2, "test_process_groups", "use_torch_after_initialize", arguments, tmp_path) == expected


@pytest.mark.parametrize(("named", "expected"), [("cpu", "cpu"), ("cpu:0", "cpu"), ("", "cuda:0")])
def test_the_group_is_for_the_device_that_initialize_would_choose(
    monkeypatch: pytest.MonkeyPatch, named: str, expected: str
):
    """Catches a default group for an accelerator where ZEROPAGE_DEVICE says that the engines run on the CPU."""
    import zeropage.comm as comm

    made: list[torch.device] = []
    monkeypatch.setattr(comm, "make_default_group", lambda device, *_: made.append(device))
    for name, value in {
        "is_available": True,
        "current_accelerator": torch.device("cuda"),
        "device_count": 1,
        "set_device_index": None,
    }.items():
        monkeypatch.setattr(torch.accelerator, name, lambda *_, value=value: value)
    monkeypatch.setenv("ZEROPAGE_DEVICE", named)
    comm.init_distributed()
    assert made == [torch.device(expected)]


def test_the_group_of_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    """Catches a ZEROPAGE_DEVICE that init_distributed ignores and initialize refuses."""
    import zeropage.comm as comm
    from zeropage.errors import ConfigError

    monkeypatch.setenv("ZEROPAGE_DEVICE", "no such")
    with pytest.raises(ConfigError, match="ZEROPAGE_DEVICE is 'no such'"):
        comm.init_distributed()


@pytest.mark.parametrize("kind", ["store", "file"])
@pytest.mark.parametrize(("uuids", "expected"), [(("one", "two"), "nccl"), (("one", "one"), "gloo")])
def test_nccl_is_for_ranks_that_have_a_gpu_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, uuids: tuple[str, str], expected: str
):
    """Catches ranks that count the GPUs they see: where Slurm shows each rank its own they see one, and would use
    gloo."""
    rank_of_thread, backends = threading.local(), {}

    def properties(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(uuid=uuids[rank_of_thread.rank])

    def init(backend: str, timeout: Any, store: Any, rank: int, world_size: int) -> None:
        backends[rank] = backend

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.distributed, "init_process_group", init)
    monkeypatch.setattr(distributed, "_remember", lambda *groups: None)
    monkeypatch.setattr(torch.distributed, "group", SimpleNamespace(WORLD=None))
    store = torch.distributed.HashStore()

    def start(rank: int) -> None:
        rank_of_thread.rank = rank
        place = {"store": store} if kind == "store" else {"init_method": f"file://{tmp_path}/meeting"}
        meeting = {**place, "rank": rank, "world_size": 2}
        distributed.init_process_group(
            torch.device("cuda:0"), distributed.World(rank, rank, 2, 2), None, timedelta(seconds=20), meeting
        )

    with ThreadPoolExecutor(2) as ranks:
        list(ranks.map(start, range(2)))
    assert backends == {0: expected, 1: expected}


def test_one_rank_has_no_groups():
    """Catches an engine of one rank that makes process groups, which are never ended, and one that trains differently
    without them."""
    finals = []
    for communicator in ("auto", "c10d"):
        engine, *_ = zeropage.initialize(
            model=small_net(0), config=config_of(2, zeropage={"communicator": communicator})
        )
        finals.append(train_engine(engine, 1, 0, 3).parameters)
        engine.destroy()
    assert not torch.distributed.is_initialized()
    assert torch.equal(*finals)


def make_and_destroy_engines(stage: int, count: int, on_device: bool) -> dict[str, Any]:
    """How many groups, threads and open files there are when each engine is made, when it is destroyed, and once more
    when the last model has been freed; the sum of ones over the ranks by the script's own group."""
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _world

    def there() -> tuple[int, int, int]:
        return len(_world.pg_map), len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    world = distributed.current_world()
    device = accelerator.device(world.rank) if on_device else torch.device("cpu")
    distributed.init_process_group(device, world)
    own = dist.new_group(backend="gloo")
    config = config_of(stage, zeropage={"communicator": "c10d", "async_save": True})
    made, destroyed = [], []
    for _ in range(count):
        dist.barrier()
        model = accelerator.OnDevice(small_net(0), device)
        engine, *others = zeropage.initialize(model=model, config=config, device=device)
        made.append(there())
        train_engine(engine, world.size, world.rank, 2)
        engine.destroy()
        destroyed.append(there())
        del model, engine, others
        gc.collect()
    distributed.end_unused_groups(wait_s=5.0)
    freed = there()
    model = accelerator.OnDevice(small_net(0), device)
    engine, *_ = zeropage.initialize(model=model, config=config, device=device)
    engine.destroy(consolidate=True)
    value = torch.ones(1)
    dist.all_reduce(value, group=own)
    return {"made": made, "destroyed": destroyed, "freed": freed, "consolidated": there(), "sum": value.item()}


@pytest.mark.parametrize("on_device", [False, pytest.param(True, marks=pytest.mark.simulated)])
@pytest.mark.parametrize("stage", [1, 3])
def test_engines_end_their_groups(stage: int, on_device: bool, tmp_path: Path):
    """Catches groups that are never ended, with their threads and connections, also when a sharded model has been freed
    or made whole, and the end of a group that the script has made."""
    arguments = json.dumps({"stage": stage, "count": 4, "on_device": on_device})
    for rank in run_processes(2, "test_process_groups", "make_and_destroy_engines", arguments, tmp_path):
        assert rank["sum"] == 2.0
        of_script, of_a_communicator = 2, 2
        kept = of_a_communicator if stage == 3 else 0  # a sharded model is gathered by them, until it is freed
        assert {groups for groups, *_ in rank["destroyed"]} == {of_script + kept}, rank
        # The other rank may still be about to free the last model: then its groups end an engine later.
        assert rank["freed"][0] == rank["consolidated"][0] == of_script, rank
        made = [groups for groups, *_ in rank["made"]]
        assert max(made) <= of_script + 3 * of_a_communicator + kept, rank
        _, threads, files = zip(*rank["destroyed"], strict=True)
        assert len(set(files[1:])) == 1, rank
        assert on_device or len(set(threads[1:])) == 1, rank  # the simulated device's streams stay, a thread each


def late_destroy() -> list[float]:
    """Seconds that each `destroy` took on this rank. Rank 1 is late each time."""
    import torch.distributed as dist

    config = config_of(1, zeropage={"communicator": "c10d"})
    world = distributed.current_world()
    seconds = []
    for late_s in (0.2, 4.0):
        engine, *_ = zeropage.initialize(model=small_net(0), config=config)
        train_engine(engine, world.size, world.rank, 2)
        dist.barrier()
        if world.rank == 1:
            time.sleep(late_s)
        began = time.monotonic()
        engine.destroy()
        seconds.append(time.monotonic() - began)
    dist.barrier()
    return seconds


def test_a_late_rank_finds_its_groups(tmp_path: Path):
    """Catches a rank that ends groups in which another one still is, and one that waits for it for ever."""
    first, late = run_processes(2, "test_process_groups", "late_destroy", "{}", tmp_path)
    assert 0.1 < first[0] < 2.0 and 1.5 < first[1] < 3.5
    assert max(late) < 1.5


def end_with_an_error() -> None:
    config = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    zeropage.initialize(model=torch.nn.Linear(2, 2), config=config)
    raise zeropage.errors.UsageError("what went wrong")


def test_errors_are_printed_beside_torchs_groups(tmp_path: Path):
    """Catches an error whose exit code is right and whose traceback torch's own hook has suppressed."""
    with pytest.raises(AssertionError) as failed:
        run_processes(2, "test_process_groups", "end_with_an_error", "{}", tmp_path)
    assert str(failed.value).count("UsageError: what went wrong") == 2
    assert "exit code 64" in str(failed.value)
