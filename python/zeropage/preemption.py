"""Ending when the machine is taken away: SIGTERM lets the step under way end, and then there is a checkpoint and exit
code 0.

1. SIGTERM, on any rank, becomes a byte in a pipe (Python's wakeup descriptor), also while the interpreter waits in C++.
2. A thread reads it and asks the engine to stop. The global check of the next step tells all ranks.
3. After that step every rank saves into `zeropage.preemption_folder` and raises SystemExit(0).
4. A process that is still there `zeropage.preemption_grace_s` after the signal ends with exit code 75, by which
   launchers start again; at a second SIGTERM it ends at once.
5. A forked child (a worker of multiprocessing) has the handler and the descriptor of its parent: both are taken from it
   before it runs, and SIGTERM waits until then. So ending a child ends nothing else.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

from . import _C

RETRY_EXIT_CODE = 75

_active: list["Preemption"] = []  # for the functions that run at a fork, which cannot be unregistered
_mask_before: set[signal.Signals] | None = None


def _before_fork() -> None:
    global _mask_before
    _mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}) if _active else None


def _after_fork() -> None:
    if _mask_before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask_before)


def _after_fork_in_child() -> None:
    while _active:
        _active.pop()._give_back()
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


class Preemption:
    """Watches for SIGTERM until closed. Made by the main thread. `core`: a weak reference to the engine."""

    def __init__(self, core: Callable[[], _C.Engine | None], grace_s: float):
        self._core = core
        self._grace_s = grace_s
        self._bytes, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._old_descriptor = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        self._old_handler = signal.signal(signal.SIGTERM, lambda signum, frame: None)
        _active.append(self)
        threading.Thread(target=self._watch, name="zeropage preemption", daemon=True).start()

    def close(self) -> None:
        """Gives SIGTERM back. A run that is being ended stays watched. Nothing in a forked child, which has given it
        back already."""
        if self in _active:
            _active.remove(self)
            self._give_back()

    def _give_back(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if self._old_handler is None else self._old_handler)
        signal.set_wakeup_fd(self._old_descriptor)
        self._wakeup.close()

    def _watch(self) -> None:
        if not self._sigterm():
            return
        core = self._core()
        if core is None:  # nothing is left that could be saved
            os._exit(128 + signal.SIGTERM)
        _C.request_stop(core)
        del core
        self._bytes.settimeout(self._grace_s)
        try:
            if self._sigterm():
                os._exit(128 + signal.SIGTERM)
        except TimeoutError:
            print(
                f"zeropage: not ended {self._grace_s:g} s after SIGTERM (zeropage.preemption_grace_s)",
                file=sys.stderr,
                flush=True,
            )
            os._exit(RETRY_EXIT_CODE)

    def _sigterm(self) -> bool:
        """Waits for the next one. False: closed."""
        while received := self._bytes.recv(1):
            if received[0] == signal.SIGTERM:
                return True
        return False
