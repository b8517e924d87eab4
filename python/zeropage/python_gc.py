"""Switches Python's cyclic garbage collector off while engines train ("disable_python_gc").

A collection of all generations takes tenths of a second in a large program. When one rank collects, the others wait,
and the ranks collect at different times. Reference counting still works: objects that are in no cycle are freed as
before.
"""

import gc
import os
import threading

_lock = threading.Lock()
_holds: set[object] = set()
_was_enabled = False


def hold() -> object:
    """Collects once and switches the collector off, for the whole process, until `release` of the last hold."""
    global _was_enabled
    token = object()
    gc.collect()
    with _lock:
        if not _holds:
            _was_enabled = gc.isenabled()
        _holds.add(token)
        gc.disable()
    return token


def release(token: object) -> None:
    """Ends a hold, once. After the last one the collector has its original state."""
    with _lock:
        if token not in _holds:
            return
        _holds.remove(token)
        if not _holds and _was_enabled:
            gc.enable()


def _forget_holds() -> None:
    """Called in a forked child, such as a worker of a data loader, which does not train."""
    global _lock
    _lock = threading.Lock()
    if _holds and _was_enabled:
        gc.enable()
    _holds.clear()


os.register_at_fork(after_in_child=_forget_holds)
