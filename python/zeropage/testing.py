"""Ranks as threads of one process, for tests."""

import threading
import time
from collections.abc import Callable
from typing import Any

from . import _C, distributed
from .errors import TimeoutError


def run_ranks(
    size: int,
    function: Callable[[int, _C.Communicator], Any],
    timeout_s: float = 60.0,
    two_sided: bool = False,
    max_delay_us: int = 0,
    shard_ranks: int = 0,
) -> list[Any]:
    """Calls `function(rank, communicator)` on `size` threads, each a rank of its own; returns their results by rank.

    `zeropage.initialize` inside uses the rank's communicator. The first exception ends the waits of all ranks and is
    raised here. Raises TimeoutError when ranks have not ended after `timeout_s`; waits of ranks for each other end
    after half of it.

    two_sided: ranks communicate as over a network: gathers are collectives, and gradients have separate communicators.
    max_delay_us: every collective has random delays of at most this time, before and inside.
    shard_ranks: as zeropage.shard_ranks of the configuration, hybrid sharding. Without two_sided and max_delay_us.
    """
    timeout_ms = int(timeout_s * 500)
    reductions: list[_C.Communicator | None] = [None] * size
    if shard_ranks > 0:
        if two_sided or max_delay_us > 0 or size % shard_ranks != 0:
            raise ValueError(f"{size} ranks in groups of {shard_ranks}, two_sided={two_sided}, delays {max_delay_us}")
        communicators, others, saves = (
            _C.make_thread_groups(size // shard_ranks, shard_ranks, timeout_ms) for _ in range(3)
        )
        reductions = list(others)
    else:
        communicators = _C.make_thread_communicators(size, timeout_ms, two_sided, max_delay_us)
        if two_sided:
            reductions = list(_C.make_thread_communicators(size, timeout_ms, two_sided, max_delay_us))
        saves = _C.make_thread_communicators(size, timeout_ms)
    results: list[Any] = [None] * size
    failures: list[BaseException] = []

    def run(rank: int) -> None:
        communicator = communicators[rank]
        try:
            with distributed.thread_rank(communicator, reductions[rank], saves[rank]):
                results[rank] = function(rank, communicator)
        except BaseException as error:  # also SystemExit and KeyboardInterrupt: they must reach the caller
            failures.append(error)
            for used in (communicator, reductions[rank], saves[rank]):
                if used is not None:
                    used.abort(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank {rank}", daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if failures:
        raise failures[0]
    stuck = [thread.name for thread in threads if thread.is_alive()]
    if stuck:
        raise TimeoutError(f"{', '.join(stuck)} did not end within {timeout_s} s")
    return results
