"""The communicator over torch's process groups (gloo, ranks as processes): its results, bytes and messages."""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from network_namespace import loopback_bytes, run_in_namespace
from processes import run_processes

from zeropage import _C
from zeropage.errors import ZeropageError

MODULE = "test_c10d_communicator"


def _new_communicator(timeout_ms: int = 20000) -> _C.Communicator:
    timeout = timedelta(milliseconds=timeout_ms)
    data, control = (dist.new_group(timeout=timeout, backend="gloo") for _ in range(2))
    return _C.make_c10d_communicator(data, control, torch.device("cpu"), True, timeout_ms)


def _error_of(call: Any) -> str:
    begin = time.monotonic()
    try:
        call()
    except ZeropageError as error:
        assert time.monotonic() - begin < 10
        return f"{type(error).__name__}: {error}"
    return ""


def conformance() -> None:
    dist.init_process_group("gloo")
    _C.run_conformance(_new_communicator())


def wire_bytes(numel: int) -> tuple[float, float]:
    """Bytes per parameter and rank that cross the loopback interface, and that the communicator counts, for one
    reduce-scatter and one all-gather. Only the barriers around them are counted, too. The smallest of three
    measurements, because TCP sends segments again if a receiver is late."""
    dist.init_process_group("gloo")
    communicator = _new_communicator()
    whole = torch.ones(numel)
    sent = []
    for _ in range(3):
        dist.barrier()
        before, counted_before = loopback_bytes(), communicator.bytes_moved
        dist.barrier()
        communicator.all_gather(communicator.reduce_scatter(whole))
        dist.barrier()
        sent.append(loopback_bytes() - before)
        dist.barrier()
    return min(sent) / communicator.size / numel, (communicator.bytes_moved - counted_before) / numel


def different_calls() -> list[str]:
    dist.init_process_group("gloo")
    errors = []
    communicator = _new_communicator()
    errors.append(
        _error_of(communicator.barrier if dist.get_rank() else lambda: communicator.all_gather(torch.ones(10)))
    )
    errors.append(_error_of(communicator.barrier))
    communicator = _new_communicator()
    errors.append(_error_of(lambda: communicator.all_gather(torch.ones(10 + dist.get_rank()))))
    return errors


def late_rank() -> str:
    dist.init_process_group("gloo")
    communicator = _new_communicator(timeout_ms=1000)
    communicator.barrier()
    if dist.get_rank() == 1:
        time.sleep(1.5)
    return _error_of(lambda: communicator.all_gather(torch.ones(10)))


def aborting_rank() -> str:
    dist.init_process_group("gloo")
    communicator = _new_communicator(timeout_ms=60000)
    communicator.barrier()
    if dist.get_rank() == 1:
        communicator.abort("disk full")
    error = _error_of(lambda: communicator.all_gather(torch.ones(10)))
    dist.barrier()  # the store is on rank 0
    return error


def _run(world: int, function: str, folder: Path, **arguments: Any) -> list[Any]:
    return run_processes(world, MODULE, function, json.dumps(arguments), folder)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_conformance(world: int, tmp_path: Path) -> None:
    """Catches sums whose bits differ from those of every other communicator, wrong sizes and offsets."""
    _run(world, "conformance", tmp_path)


@pytest.mark.parametrize("world", [2, 4])
def test_a_gather_and_a_reduction_send_what_they_must(world: int, tmp_path: Path) -> None:
    """Catches a reduce-scatter that is computed by an all-reduce, which sends twice as much."""
    due = 2 * 4 * (world - 1) / world
    arguments = json.dumps({"numel": 1 << 20})
    for sent, counted in run_in_namespace(world, MODULE, "wire_bytes", arguments, tmp_path):
        assert counted == due
        assert due <= sent <= 1.05 * due


def test_different_calls_are_named(tmp_path: Path) -> None:
    """Catches wrong sums, crashes of the backend, and hangs when ranks do different things."""
    for first, later, sizes in _run(2, "different_calls", tmp_path):
        assert first.startswith("PeerError") and "barrier" in first and "all_gather of 40 bytes" in first
        assert later.startswith("PeerError")
        assert "all_gather of 40 bytes" in sizes and "all_gather of 44 bytes" in sizes


def test_late_rank_is_named_with_what_it_did_last(tmp_path: Path) -> None:
    """Catches a hang, and a message without the state of the other ranks."""
    waiting, late = _run(2, "late_rank", tmp_path)
    assert waiting.startswith("TimeoutError") and "all_gather of 40 bytes" in waiting
    assert "missing: rank 1, which last reported collective 0: barrier" in waiting
    assert "Error: " in late


def test_abort_reaches_the_others_before_the_timeout(tmp_path: Path) -> None:
    """Catches ranks that wait for their timeout although another one has aborted."""
    for error in _run(2, "aborting_rank", tmp_path):
        assert error.startswith("PeerError") and "disk full" in error
