"""Reports during training: `wall_clock_breakdown`, `memory_breakdown`, monitors and the metrics file.

The C++ core takes the figures of each optimizer step, writes the file and prints (zeropage/session/step_observer.h);
this module passes them to the monitors and the flops profiler, which are in Python.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from . import _C
from .flops import FlopsProfiler
from .monitor import Monitor

if TYPE_CHECKING:
    from .engine import ZeropageEngine


class StepObserver:
    """One object per engine and rank. Use `phase` around each forward, backward and step, and call `end_step` after
    each optimizer step."""

    def __init__(self, engine: "ZeropageEngine", config: dict[str, Any], rank: int):
        self._engine = engine
        self._core: _C.StepObserver | None = _C.StepObserver(
            engine._core, engine._config, rank, engine.world_size, engine.device
        )
        self._flops = (
            FlopsProfiler(engine, config["flops_profiler"])
            if config["flops_profiler"]["enabled"] and rank == 0
            else None
        )
        self.monitor = Monitor(config, rank)
        self._watches_phases = self._core.watches_phases or self._flops is not None
        self._watches_steps = (
            self._core.prints_times or self._core.has_file or self._flops is not None or self.monitor.enabled
        )

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """name: forward, backward or step. An out-of-memory error in it gets the bytes that the engine holds."""
        try:
            with self._watched_phase(name) if self._watches_phases else nullcontext():
                yield
        except torch.OutOfMemoryError as error:
            error.add_note(f"This engine holds: {self._engine._core.held_memory()}")
            raise

    @contextmanager
    def _watched_phase(self, name: str) -> Iterator[None]:
        if self._flops is not None and name != "step":
            with self._flops.count(name):
                yield
        else:
            yield
        if self._core is not None:
            self._core.end_phase(name)

    def end_step(self) -> None:
        """Call after an optimizer step, applied or skipped."""
        if not self._watches_steps or self._core is None:
            return
        engine = self._engine
        loss, lr = engine.known_loss(), engine.get_lr()[0]
        times = self._core.end_step(loss, lr)
        if self._flops is not None:
            self._flops.end_step(times.seconds)
        if self.monitor.enabled:
            self.monitor.write_events(
                [(name, value, engine.global_samples) for name, value in self._core.monitored(loss, lr, times)]
            )

    def close(self) -> None:
        """Ends the files."""
        self.monitor.close()
        if self._core is not None:
            self._core.close()
            self._core = None  # it keeps the engine's core
