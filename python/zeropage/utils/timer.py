"""Timers for programs: `deepspeed.utils.timer`. They wait for the device when they start and stop, so that they include
its work.

The engine's own times, by phase and without such waits, are in its metrics ("wall_clock_breakdown",
docs/monitoring.md).
"""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

from ..compat.accelerator import get_accelerator
from ..errors import UsageError
from ..report import format_bytes, process_bytes
from . import log_dist

FORWARD_MICRO_TIMER, FORWARD_GLOBAL_TIMER = "fwd_microstep", "fwd"
BACKWARD_MICRO_TIMER, BACKWARD_GLOBAL_TIMER = "bwd_microstep", "bwd"
BACKWARD_INNER_MICRO_TIMER, BACKWARD_INNER_GLOBAL_TIMER = "bwd_inner_microstep", "bwd_inner"
BACKWARD_REDUCE_MICRO_TIMER, BACKWARD_REDUCE_GLOBAL_TIMER = "bwd_allreduce_microstep", "bwd_allreduce"
STEP_MICRO_TIMER, STEP_GLOBAL_TIMER = "step_microstep", "step"
TIME_EPSILON = 1e-6  # seconds


class Timer:
    """A timer of SynchronizedWallClockTimer: sums the times between `start` and `stop`."""

    def __init__(self, name: str):
        self.name_ = name
        self.started_ = False
        self._sum = 0.0
        self._records: list[float] = []

    def start(self) -> None:
        if self.started_:
            raise UsageError(f"{self.name_} timer has already been started")
        self.started_ = True
        self._begin = _now()

    def stop(self, reset: bool = False, record: bool = False) -> None:
        """reset: discards earlier times. record: keeps this time for `mean`."""
        if not self.started_:
            raise UsageError(f"{self.name_} timer is not started")
        self.started_ = False
        took = (_now() - self._begin) * 1e3
        self._sum = took if reset else self._sum + took
        if record:
            self._records.append(took)

    def elapsed(self, reset: bool = True) -> float:
        """Milliseconds so far; a running timer continues."""
        running = self.started_
        if running:
            self.stop()
        total = self._sum
        if reset:
            self.reset()
        if running:
            self.start()
        return total

    def mean(self) -> float:
        """The mean of the recorded times in milliseconds, without the shortest and the longest tenth."""
        return trim_mean(self._records, 0.1)

    def reset(self) -> None:
        self._sum = 0.0
        self._records = []


class SynchronizedWallClockTimer:
    """Timers by name: timers("data").start()."""

    def __init__(self) -> None:
        self.timers: dict[str, Timer] = {}

    def __call__(self, name: str) -> Timer:
        return self.timers.setdefault(name, Timer(name))

    def has_timer(self, name: str) -> bool:
        return name in self.timers

    def get_timers(self) -> dict[str, Timer]:
        return self.timers

    def get_mean(self, names: Iterable[str], normalizer: float = 1.0, reset: bool = True) -> dict[str, float]:
        """The means of the existing timers, in milliseconds divided by `normalizer`."""
        means = {name: self.timers[name].mean() / normalizer for name in names if name in self.timers}
        if reset:
            for name in means:
                self.timers[name].reset()
        return means

    def log(
        self,
        names: Iterable[str],
        normalizer: float = 1.0,
        reset: bool = True,
        memory_breakdown: bool | None = None,
        ranks: list[int] | None = None,
    ) -> None:
        """Logs the times of the existing timers, on these ranks (None: rank 0), with memory in use if requested."""
        times = [
            f"{name}: {self.timers[name].elapsed(reset) / normalizer:.2f}" for name in names if name in self.timers
        ]
        memory = f" | {self.memory_usage()}" if memory_breakdown else ""
        log_dist(f"time (ms) | {' | '.join(times)}{memory}", ranks=ranks or [0])

    @staticmethod
    def memory_usage() -> str:
        device = get_accelerator()
        return (
            f"allocated {format_bytes(device.memory_allocated())}, peak {format_bytes(device.max_memory_allocated())}"
        )


SynchronizedWallClockTimer.Timer = Timer  # type: ignore[attr-defined]  # a name that programs use


class NoopTimer:
    """Replaces SynchronizedWallClockTimer when nothing should be timed."""

    class Timer:
        def start(self) -> None: ...

        def stop(self, reset: bool = False, record: bool = False) -> None: ...

        def reset(self) -> None: ...

        def elapsed(self, reset: bool = True) -> float:
            return 0.0

        def mean(self) -> float:
            return 0.0

    def __init__(self) -> None:
        self.timer = self.Timer()

    def __call__(self, name: str) -> "NoopTimer.Timer":
        return self.timer

    def has_timer(self, name: str) -> bool:
        return True

    def get_timers(self) -> dict[str, Any]:
        return {}

    def get_mean(self, names: Iterable[str], normalizer: float = 1.0, reset: bool = True) -> dict[str, float]:
        return {}

    def log(
        self,
        names: Iterable[str],
        normalizer: float = 1.0,
        reset: bool = True,
        memory_breakdown: Any = None,
        ranks: Any = None,
    ) -> None: ...


class ThroughputTimer:
    """Samples per second over the steps between `start` and `stop`, without the first ones."""

    def __init__(
        self,
        config: Any,
        batch_size: int,
        start_step: int = 2,
        steps_per_output: int | None = None,
        monitor_memory: bool = False,
        logging_fn: Callable[[str], None] | None = None,
    ):
        """config: with `enabled`, or None. batch_size: samples of a micro step. start_step: steps that are not counted.
        steps_per_output: after so many steps `logging_fn` (None: rank 0's log) gets a line, with the host's memory if
        `monitor_memory` is set."""
        self.enabled = getattr(config, "enabled", True)
        self.batch_size = max(batch_size, 1)
        self.start_step, self.steps_per_output, self.monitor_memory = start_step, steps_per_output, monitor_memory
        self.logging = logging_fn or (lambda line: log_dist(line, ranks=[0]))
        self.micro_step_count = self.global_step_count = self.epoch_count = 0
        self.total_elapsed_time = 0.0
        self._counted_samples = 0
        self._begin: float | None = None

    def update_epoch_count(self) -> None:
        self.epoch_count += 1
        self.micro_step_count = 0

    def start(self) -> None:
        if self.enabled:
            self._begin = _now()

    def stop(self, global_step: bool = False, report_speed: bool = True) -> None:
        """global_step: an optimizer step ends here."""
        if not self.enabled or self._begin is None:
            return
        took, self._begin = _now() - self._begin, None
        self.micro_step_count += 1
        self.global_step_count += global_step
        if self.global_step_count <= self.start_step:
            return
        self.total_elapsed_time += took
        self._counted_samples += self.batch_size
        if (
            global_step
            and report_speed
            and self.steps_per_output
            and self.global_step_count % self.steps_per_output == 0
        ):
            memory = f", host {format_bytes(process_bytes())}" if self.monitor_memory else ""
            self.logging(
                f"epoch {self.epoch_count}, step {self.global_step_count}: {self.avg_samples_per_sec():.2f} samples/s{memory}"
            )

    def avg_samples_per_sec(self) -> float:
        """0 before the first counted step."""
        return self._counted_samples / max(self.total_elapsed_time, TIME_EPSILON)


def trim_mean(data: list[float], trim_percent: float) -> float:
    """The mean without the smallest and the largest `trim_percent` (a fraction below 0.5) of the values; 0 of none."""
    if not 0 <= trim_percent < 0.5:
        raise UsageError(f"trim_percent is a fraction from 0 to less than 0.5, got {trim_percent}")
    cut = int(len(data) * trim_percent)
    kept = sorted(data)[cut : len(data) - cut]
    return statistics.fmean(kept) if kept else 0.0


def _now() -> float:
    """The current time in seconds, after a wait for the device."""
    get_accelerator().synchronize()
    return time.perf_counter()
