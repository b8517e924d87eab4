"""What a run tells about itself while it goes on: `wall_clock_breakdown`, `memory_breakdown`, monitors and the metrics file.

The C++ engine adds up where time goes; here the figures of each optimizer step are taken and handed on. Times are those of the
host. On a device `wall_clock_breakdown` waits for it at the end of each phase, so that they are the device's, too; nothing else does.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from . import _C, report
from .flops import FlopsProfiler
from .metrics_file import MetricsFile
from .monitor import Event, Monitor

if TYPE_CHECKING:
    from .engine import ZeropageEngine

PARTS = ("forward", "backward", "step", "fault", "wait", "update", "gather", "reduce")
"""Of a step: its three phases; inside them faults, waits for gradients and the update; and how long transfers were under way."""

_STEPS_PER_PRINT = 10  # where `steps_per_print` is not given


class StepObserver:
    """Of one engine, on one rank. `phase` goes round forward, backward and step; `end_step` follows each optimizer step."""

    def __init__(self, engine: "ZeropageEngine", config: dict[str, Any], rank: int):
        first = rank == 0
        self._engine = engine
        self._every = config["steps_per_print"] or _STEPS_PER_PRINT
        self._times = config["wall_clock_breakdown"] and first
        self._memory = config["memory_breakdown"] and first
        self._waits_for_device = config["wall_clock_breakdown"] and engine.device.type != "cpu"
        self._flops = FlopsProfiler(engine, config["flops_profiler"]) if config["flops_profiler"]["enabled"] and first else None
        path = config["zeropage"]["metrics_file"]
        self._file = MetricsFile(path, engine, config) if path and first else None
        self.monitor = Monitor(config, rank)
        self._marks = self._totals(), time.perf_counter()
        self._printed = self._marks, engine.global_steps
        self._watches = bool(self._times or self._memory or self._waits_for_device or self._flops)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """name: forward, backward or step."""
        if not self._watches:
            yield
            return
        prints = (self._engine.global_steps + 1) % self._every == 0  # before the step counts itself
        if self._flops is not None and name != "step":
            with self._flops.count(name):
                yield
        else:
            yield
        if self._waits_for_device:
            torch.accelerator.synchronize()
        if self._memory and prints:
            _C.log_info(f"memory after {name}: {self._memory_line()}")

    def end_step(self) -> None:
        """After an optimizer step, applied or skipped."""
        if not (self._watches or self._file or self.monitor.enabled):
            return
        parts, seconds = self._since(self._marks)
        self._marks = self._totals(), time.perf_counter()
        if self._flops is not None:
            self._flops.end_step(seconds)
        if self._file is not None:
            self._file.write_step(parts, seconds)
        if self.monitor.enabled:
            times = {name: parts[name] for name in PARTS[:3]} if self._times else {}
            self.monitor.write_events(step_events(self._engine, times))
        if self._times and self._engine.global_steps % self._every == 0:
            self._print_times()

    def close(self) -> None:
        """Ends the files."""
        self.monitor.close()
        if self._file is not None:
            self._file.close()

    def _totals(self) -> dict[str, float]:
        totals = self._engine._core.span_seconds()
        return {name: totals.get(name, 0.0) for name in PARTS}

    def _since(self, marks: tuple[dict[str, float], float]) -> tuple[dict[str, float], float]:
        totals, started = marks
        return {name: value - totals[name] for name, value in self._totals().items()}, time.perf_counter() - started

    def _print_times(self) -> None:
        marks, first = self._printed
        parts, seconds = self._since(marks)
        steps = self._engine.global_steps - first
        self._printed = self._marks, self._engine.global_steps
        ms = {name: f"{1000 * value / steps:.1f} ms" for name, value in parts.items()}
        between = 1000 * (seconds - parts["forward"] - parts["backward"] - parts["step"]) / steps
        _C.log_info(
            f"step {self._engine.global_steps}, mean of {steps}: {1000 * seconds / steps:.1f} ms = forward {ms['forward']} + "
            f"backward {ms['backward']} + step {ms['step']} + between {between:.1f} ms; "
            f"of these waiting for pages {ms['fault']}, for gradients {ms['wait']}, update {ms['update']}"
        )

    def _memory_line(self) -> str:
        held = [f"{kind} {report.format_bytes(now)}" for kind, (now, _) in self._engine._core.measured_bytes().items()]
        offloaded = self._engine._core.measured_bytes(host=True).items()
        held += [f"{kind} offloaded {report.format_bytes(now)}" for kind, (now, _) in offloaded if now]
        if self._engine.device.type == "cuda":
            held.append(f"device {report.format_bytes(torch.cuda.memory_allocated(self._engine.device))}")
            held.append(f"device peak {report.format_bytes(torch.cuda.max_memory_allocated(self._engine.device))}")
        held.append(f"process {report.format_bytes(report.process_bytes())}")
        return ", ".join(held)


def step_events(engine: "ZeropageEngine", seconds: dict[str, float]) -> list[Event]:
    """What monitors are told of the last optimizer step, under DeepSpeed's names. seconds: by phase, where they are taken."""
    values = {"train_loss": engine.known_loss(), "lr": engine.get_lr()[0], "grad_norm": engine.get_global_grad_norm()}
    if engine.fp16_enabled():
        values["loss_scale"] = engine.loss_scale()
    values |= {f"elapsed_time_ms_{name}": 1000 * value for name, value in seconds.items()}
    return [(f"Train/Samples/{name}", value, engine.global_samples) for name, value in values.items() if value is not None]
