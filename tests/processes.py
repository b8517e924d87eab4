"""Ranks as real processes: each runs a function of a test module and returns its result through a file."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch

from zeropage.errors import ZeropageError

TESTS = Path(__file__).resolve().parent
_CHILD = """
import importlib, json, sys, torch
import accelerator
torch.set_num_threads(1)
accelerator.load_if_told()
module, function, result, arguments = sys.argv[1:]
outcome = getattr(importlib.import_module(module), function)(**json.loads(arguments))
accelerator.check()
torch.save(outcome, result)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def output_of(process: subprocess.Popen) -> IO[Any]:
    """The standard output of a process that was started with a pipe for it."""
    assert process.stdout is not None, "the process was started without stdout=subprocess.PIPE"
    return process.stdout


def start_ranks(
    world: int, module: str, function: str, arguments: str, folder: Path, variables: Sequence[dict[str, str]] = ()
) -> list[subprocess.Popen]:
    """Starts `function(**arguments)` (JSON) of a module in this folder on every rank, with a launcher's environment.

    variables: more of them, by rank.
    """
    common = {
        **os.environ,
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "ZEROPAGE_JOB_TOKEN": uuid.uuid4().hex,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "examples"), os.environ.get("PYTHONPATH", "")]),
    }
    ranks = []
    for rank in range(world):
        command = [sys.executable, "-c", _CHILD, module, function, str(folder / f"rank{rank}.pt"), arguments]
        environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank), **(variables[rank] if variables else {})}
        ranks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    return ranks


def run_processes(
    world: int, module: str, function: str, arguments: str, folder: Path, timeout_s: float = 60
) -> list[Any]:
    """Runs them to their end; what each returned, by rank. If a rank fails, the test fails with the errors of all
    ranks."""
    ranks = start_ranks(world, module, function, arguments, folder)
    with ThreadPoolExecutor(world) as readers:
        errors = [readers.submit(process.communicate) for process in ranks]
        try:
            _wait_for(ranks, timeout_s)
            codes = [process.poll() for process in ranks]
        finally:
            for process in ranks:
                process.kill()
    messages = "\n".join(
        f"rank {rank}: exit code {code}\n{errors[rank].result()[1]}" for rank, code in enumerate(codes)
    )
    assert codes == [0] * world, f"a rank failed or did not end within {timeout_s} s (None):\n{messages}"
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world)]


def update_until_killed(rank: int, folder: str, update: Callable[[int], object]) -> str:
    """For a rank of `messages_after_kill`: calls update(0), update(1), ... until a peer's end is an error, and returns
    its message."""
    try:
        for step in range(10**6):
            update(step)
            if step == 2:
                Path(folder, f"training{rank}").touch()
    except ZeropageError as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("this run ends by a signal")


def messages_after_kill(world: int, module: str, folder: Path, killed: int) -> list[str]:
    """Starts `train_until_killed(folder)` of the module on every rank, which calls `update_until_killed`, and kills one
    rank when all have trained; the messages of the others, by rank. The test fails if one of them has another error, or
    has not ended 15 s later."""
    ranks = start_ranks(world, module, "train_until_killed", json.dumps({"folder": str(folder)}), folder)
    survivors = [rank for rank in range(world) if rank != killed]
    try:
        deadline = time.monotonic() + 60
        while not all((folder / f"training{rank}").exists() for rank in range(world)):
            assert time.monotonic() < deadline and all(process.poll() is None for process in ranks)
            time.sleep(0.05)
        os.kill(ranks[killed].pid, signal.SIGKILL)
        start = time.monotonic()
        for rank in survivors:
            _, errors = ranks[rank].communicate(timeout=30)
            assert ranks[rank].returncode == 0, errors
        assert time.monotonic() - start < 15
    finally:
        for process in ranks:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt") for rank in survivors]


def _wait_for(ranks: list[subprocess.Popen], timeout_s: float) -> None:
    """Waits until all have ended or the time is over. Once a rank has failed the others have ten seconds to report
    it."""
    end = time.monotonic() + timeout_s
    failed = False
    while time.monotonic() < end:
        codes = [process.poll() for process in ranks]
        if None not in codes:
            return
        if any(codes) and not failed:
            failed = True
            end = min(end, time.monotonic() + 10)
        time.sleep(0.02)
