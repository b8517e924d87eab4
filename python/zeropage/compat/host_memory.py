"""Peak memory of this process and memory of its host, from the kernel; and times with the interface of a device's
events."""

import time
from pathlib import Path


def _kib(file: str, key: str) -> int:
    """The value of a line `key:  123 kB` of a file in /proc."""
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def peak_bytes() -> int:
    """The largest value of `report.process_bytes` since the start of the process, or since `reset_peak`."""
    return _kib("/proc/self/status", "VmHWM") * 1024


def reset_peak() -> None:
    """Starts `peak_bytes` again. Raises OSError if the kernel does not allow it."""
    Path("/proc/self/clear_refs").write_text("5")


def total_bytes() -> int:
    """Of the host."""
    return _kib("/proc/meminfo", "MemTotal") * 1024


def available_bytes() -> int:
    """Available memory of the host, without swapping."""
    return _kib("/proc/meminfo", "MemAvailable") * 1024


class HostEvent:
    """A time on the host's clock, with the methods of a device's event. All earlier calls have ended."""

    def __init__(self, enable_timing: bool = True, **_: object):
        self._seconds: float | None = None

    def record(self, stream: object = None) -> None:
        self._seconds = time.perf_counter()

    def synchronize(self) -> None:
        """Returns at once."""

    def wait(self, stream: object = None) -> None:
        """Returns at once."""

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "HostEvent") -> float:
        """Milliseconds from this event to `end`. Raises RuntimeError for one that was not recorded, as torch does."""
        if self._seconds is None or end._seconds is None:
            raise RuntimeError("elapsed_time: both events must be recorded before")
        return (end._seconds - self._seconds) * 1e3
