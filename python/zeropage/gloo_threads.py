"""The end of a program that has process groups of gloo.

A thread of gloo may release a tensor after the collective has returned. For a tensor with a Python object the thread
needs Python's lock. Up to Python 3.13, a thread that takes this lock while Python ends is ended itself, inside a
destructor, and so the process is aborted (exit code -6). PyTorch's way around it is destroy_process_group(), which most
scripts do not call.

1. `wait_at_exit` is registered when the first engine or group is made.
2. At exit it waits, at most `limit_s`, until each thread of gloo sleeps and has not run for `QUIET_S`. A thread that
   waits for Python's lock runs every few milliseconds to ask for it.
3. The groups stay as they are: nothing waits for a peer.
"""

import atexit
import functools
import time
from collections.abc import Iterator
from pathlib import Path

_THREADS = Path("/proc/self/task")
_NAME = "pt_gloo_runloop"  # torch's name for these threads
QUIET_S = 0.02  # four times the 5 ms after which a waiting thread asks for Python's lock


def _last_runs() -> Iterator[tuple[str, str, str]]:
    """For each thread of gloo: its number, its state (S: sleeping) and how often it gave up its processor."""
    for thread in _THREADS.glob("*"):
        try:
            if (thread / "comm").read_text().strip() != _NAME:
                continue
            lines = (thread / "status").read_text().splitlines()
        except OSError:
            continue  # it has ended
        fields = dict(line.split(":", 1) for line in lines)
        yield thread.name, fields["State"].split()[0], fields["voluntary_ctxt_switches"]


def wait_until_quiet(limit_s: float = 5.0) -> bool:
    """Waits until no thread of gloo has anything left to release. False if one still ran after `limit_s`.

    Costs QUIET_S where there are such threads.
    """
    end = time.monotonic() + limit_s
    before = set(_last_runs())
    while before:
        time.sleep(QUIET_S)
        now = set(_last_runs())
        if now == before and all(state == "S" for _, state, _ in now):
            return True
        if time.monotonic() >= end:
            return False
        before = now
    return True


@functools.cache
def wait_at_exit() -> None:
    """Makes the program wait at its end for what the threads of gloo still release."""
    atexit.register(wait_until_quiet)
