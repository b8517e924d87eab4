"""A limit on the memory of a process: a cgroup if this user may make one, else a comparison with the measured peak."""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


class MemoryLimit:
    """`how` describes what enforces it. The limited process calls `enter` before it allocates."""

    how = "memory cannot be limited here: the measured peak is compared with the limit afterwards"

    def enter(self) -> None:
        pass

    def peak_bytes(self) -> int:
        """The peak of the child processes that have ended."""
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


class CgroupLimit(MemoryLimit):
    """The group counts all memory: the program, its libraries, and the page cache of files that it has read."""

    def __init__(self, group: Path, version: int, limit_bytes: int):
        self.group, self.version = group, version
        self.how = (
            f"a memory cgroup (version {version}) of {limit_bytes >> 20} MiB: a process that needs more is killed"
        )
        limits = {1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), 2: ("memory.max", "memory.swap.max")}[
            version
        ]
        (group / limits[0]).write_text(str(limit_bytes))
        with contextlib.suppress(OSError):  # without swap, or without its accounting, there is nothing to limit
            (group / limits[1]).write_text(str(limit_bytes if version == 1 else 0))

    def enter(self) -> None:
        (self.group / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes(self) -> int:
        names = {1: ["memory.max_usage_in_bytes"], 2: ["memory.peak", "memory.current"]}[self.version]
        return next(int((self.group / name).read_text()) for name in names if (self.group / name).exists())


@contextlib.contextmanager
def memory_limit(limit_bytes: int) -> Iterator[MemoryLimit]:
    """The strictest limit that this machine permits, during the block."""
    for parent, version in ((CGROUPS / "memory", 1), (CGROUPS, 2)):
        group = parent / f"zeropage-demo-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            limit = CgroupLimit(group, version, limit_bytes)
        except OSError:  # version 2 without the memory controller, or a group without permission
            group.rmdir()
            continue
        try:
            yield limit
        finally:
            group.rmdir()
        return
    yield MemoryLimit()
