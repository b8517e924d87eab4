"""Shared code of the benches: ranks as processes, alternating blocks of steps, one line of JSON per result."""

import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)  # of a system


def is_rank() -> bool:
    """Whether this process is a rank that `run_ranks` started."""
    return "RANK" in os.environ


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(size: int, arguments: Sequence[str]) -> list[subprocess.Popen]:
    """Starts this program again as `size` ranks of one job, with the cores divided evenly among them."""
    shared = {
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "OMP_NUM_THREADS": max(1, len(os.sched_getaffinity(0)) // size),
    }
    ranks = []
    for rank in range(size):
        own = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        environ = {**os.environ, **{name: str(value) for name, value in own.items()}}
        ranks.append(subprocess.Popen([sys.executable, sys.argv[0], *arguments], env=environ))
    return ranks


def run_ranks(size: int, arguments: Sequence[str] = ()) -> None:
    """Runs this program as `size` ranks until all have ended. Raises SystemExit when one fails, after ending the
    others."""
    ranks = start_ranks(size, arguments)
    try:
        while any(rank.poll() is None for rank in ranks):
            if any(rank.poll() for rank in ranks):
                raise SystemExit(f"a rank of {sys.argv[0]} failed; its message is above")
            time.sleep(0.05)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    if any(rank.returncode for rank in ranks):
        raise SystemExit(f"a rank of {sys.argv[0]} failed; its message is above")


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """Runs `count` busy processes, each using one core, during the block. They end with this process, too."""
    program = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(1_000_000): pass"
    busy = [subprocess.Popen([sys.executable, "-I", "-S", "-c", program]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Block:
    """The average cost of one step over a block of steps, on this rank."""

    wall_s: float
    cpu_s: float  # of all threads of the process; meaningful even when other programs use the machine
    sleeps: float  # how often the calling thread gave up its core voluntarily


def _sleeps() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def take_turns(
    systems: Mapping[Name, Callable[[], object]], rounds: int, steps: int, barrier: Callable[[], object] = lambda: None
) -> dict[Name, list[Block]]:
    """Runs `steps` steps of each system in turn, `rounds` times; each round begins with a different system.

    So other load on the machine affects all systems equally. Returns one block per round and system.
    """
    blocks: dict[Name, list[Block]] = {name: [] for name in systems}
    names = list(systems)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            step = systems[name]
            step()  # replaces what the previous system left in the caches
            barrier()
            wall, cpu, slept = time.perf_counter(), time.process_time(), _sleeps()
            for _ in range(steps):
                step()
            spent_slept = _sleeps() - slept
            barrier()
            blocks[name].append(
                Block((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps, spent_slept / steps)
            )
    return blocks


def ratio_figures(ours: Sequence[Block], theirs: Sequence[Block]) -> dict[str, object]:
    """Wall time: median and quartiles of the paired ratios, ratio of the minima. Processor time: median of the
    ratios."""
    pairs = list(zip(ours, theirs, strict=True))
    low, middle, high = statistics.quantiles([a.wall_s / b.wall_s for a, b in pairs], n=4)
    return {
        "ratio": round(middle, 3),
        "ratio_quartiles": [round(low, 3), round(high, 3)],
        "ratio_of_minima": round(min(a.wall_s for a in ours) / min(b.wall_s for b in theirs), 3),
        "cpu_ratio": round(statistics.median(a.cpu_s / b.cpu_s for a, b in pairs), 3),
    }


def emit(bench: str, **figures: object) -> None:
    """Prints one result as a line of JSON."""
    print(json.dumps({"bench": bench, **figures}), flush=True)
