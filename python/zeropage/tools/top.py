"""`zeropage top`: the jobs of this host as they run: ranks with memory, processor time and I/O, and the step where a
metrics file is written.

    1. A rank is a process whose environment names a rank and a job; of its children (loader workers), which inherit
       both, only the parent is shown.
    2. Rates are differences between two looks at /proc.
    3. The step is read from the last complete line of the file of `zeropage.metrics_file`, which rank 0 has open.

The job itself is not contacted. Processes of other users are not shown.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..report import format_bytes
from .run_records import parse_record

_JOB_NAMES = ("ZEROPAGE_JOB_TOKEN", "TORCHELASTIC_RUN_ID")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Rank:
    """One process of a job. job: its token; the numbers are those of the environment."""

    pid: int
    parent: int
    job: str
    rank: int
    world_size: int
    command: str


@dataclass(frozen=True)
class Usage:
    """The usage at one time: bytes of memory; and since the start bytes read from and written to storage, and processor
    seconds."""

    time_s: float
    resident_bytes: int
    processor_s: float
    read_bytes: int
    written_bytes: int


def find_ranks(proc: Path = Path("/proc")) -> list[Rank]:
    """Ordered by job and rank."""
    found = [rank for folder in proc.iterdir() if folder.name.isdigit() and (rank := _rank_of(folder)) is not None]
    places = {(rank.job, rank.rank, rank.pid) for rank in found}
    parents = [rank for rank in found if (rank.job, rank.rank, rank.parent) not in places]
    return sorted(parents, key=lambda rank: (rank.job, rank.rank))


def usage_of(pid: int, proc: Path = Path("/proc")) -> Usage | None:
    """The usage of a process; None: it has ended."""
    folder = proc / str(pid)
    try:
        stat = (folder / "stat").read_text().rpartition(")")[2].split()
        pages = int((folder / "statm").read_text().split()[1])
        io = dict(line.split(": ") for line in (folder / "io").read_text().splitlines())
    except (OSError, ValueError):
        return None
    processor_s = (int(stat[11]) + int(stat[12])) / _TICKS_PER_S
    return Usage(time.monotonic(), pages * _PAGE_BYTES, processor_s, int(io["read_bytes"]), int(io["write_bytes"]))


def last_steps(pid: int, proc: Path = Path("/proc")) -> list[dict]:
    """The last step records of the metrics file that the process has open, up to two; empty when there is none."""
    try:
        targets = {os.readlink(link) for link in (proc / str(pid) / "fd").iterdir()}
    except OSError:
        return []
    for target in sorted(targets):
        if target.endswith(".jsonl") and os.path.isfile(target):
            steps = [record for record in _tail_records(target) if record["record"] == "step"]
            if steps:
                return steps[-2:]
    return []


def table(ranks: list[Rank], before: dict[int, Usage], after: dict[int, Usage]) -> str:
    """The table; ranks that have ended in between are left out."""
    if not ranks:
        return "no job runs here: ranks are found by the environment variables of the launcher (or torchrun)\n"
    lines = []
    for job in dict.fromkeys(rank.job for rank in ranks):
        mine = [rank for rank in ranks if rank.job == job]
        lines.append(f"job {job[:12]}: {len(mine)} of {mine[0].world_size} ranks here, {mine[0].command}")
        lines += [f"  {line}" for rank in mine if rank.rank == 0 for line in _progress_lines(last_steps(rank.pid))]
        lines.append(f"  {'rank':>4} {'pid':>8} {'memory':>10} {'processors':>10} {'read/s':>10} {'written/s':>10}")
        for rank in mine:
            if rank.pid in before and rank.pid in after:
                lines.append(f"  {rank.rank:>4} {rank.pid:>8} " + _rates(before[rank.pid], after[rank.pid]))
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """The command; Ctrl-C ends it."""
    parser = argparse.ArgumentParser(prog="zeropage top", description="Shows the jobs of this host as they run.")
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="between two looks")
    parser.add_argument("--once", action="store_true", help="look twice, print, and end")
    given = parser.parse_args(arguments)
    try:
        for text in _looks(given.interval):
            if given.once:
                sys.stdout.write(text)
                return 0
            sys.stdout.write("\x1b[H\x1b[J" + text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    return 0


def _looks(interval_s: float) -> Iterator[str]:
    before = usages(find_ranks())
    while True:
        time.sleep(interval_s)
        ranks = find_ranks()
        after = usages(ranks)
        yield table(ranks, before, after)
        before = after


def usages(ranks: list[Rank]) -> dict[int, Usage]:
    """The usage of each rank that still runs, by process."""
    return {rank.pid: usage for rank in ranks if (usage := usage_of(rank.pid)) is not None}


def _rank_of(folder: Path) -> Rank | None:
    try:
        environment = dict(
            entry.split("=", 1)
            for entry in (folder / "environ").read_text(errors="replace").split("\0")
            if "=" in entry
        )
        job = next((environment[name] for name in _JOB_NAMES if name in environment), None)
        if job is None or "RANK" not in environment or "WORLD_SIZE" not in environment:
            return None
        words = (folder / "cmdline").read_text(errors="replace").split("\0")
        parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        command = "".join(c for c in " ".join(os.path.basename(word) for word in words[:3]).strip() if c.isprintable())
        return Rank(int(folder.name), parent, job, int(environment["RANK"]), int(environment["WORLD_SIZE"]), command)
    except (OSError, ValueError):
        return None  # ended meanwhile, or another user's


def _tail_records(path: str) -> list[dict]:
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - _TAIL_BYTES))
        lines = file.read(_TAIL_BYTES).splitlines()
    return [record for line in lines if (record := parse_record(line)) is not None]


def _progress_lines(steps: list[dict]) -> list[str]:
    if not steps:
        return []
    last = steps[-1]
    loss = "-" if last["loss"] is None else f"{last['loss']:.4g}"
    text = f"step {last['step']}, loss {loss}, {1000 * last['seconds']['whole']:.0f} ms a step"
    if len(steps) == 2 and last["seconds"]["whole"] > 0:
        samples = last["samples"] - steps[0]["samples"]
        text += f", {samples / last['seconds']['whole']:.1f} samples/s"
    return [text]


def _rates(before: Usage, after: Usage) -> str:
    seconds = max(after.time_s - before.time_s, 1e-9)
    processors = (after.processor_s - before.processor_s) / seconds
    read = format_bytes(int((after.read_bytes - before.read_bytes) / seconds))
    written = format_bytes(int((after.written_bytes - before.written_bytes) / seconds))
    return f"{format_bytes(after.resident_bytes):>10} {processors:>10.1f} {read:>10} {written:>10}"
