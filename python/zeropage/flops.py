"""`flops_profiler`: operations of one optimizer step, counted from the operators that torch dispatches, and the share
of the device's peak.

    1. In step `profile_step` (counted from 1) the forwards and backwards run under torch's FLOP counter, by module.
       That step is slow.
    2. The next step runs normally, and the rate is computed from its time.

Matrix products, convolutions and attention are counted, two operations for a multiplication and an addition; the rest
is negligible. Recomputation of activation checkpointing is dispatched again, and so counted in the backward.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from . import _C

if TYPE_CHECKING:
    from .engine import ZeropageEngine


class FlopsProfiler:
    """Of rank 0."""

    def __init__(self, engine: "ZeropageEngine", section: dict[str, Any]):
        self._engine = engine
        self._section = section
        self._flops = {"forward": 0, "backward": 0}
        self._modules: dict[str, int] = {}

    @contextmanager
    def count(self, phase: str) -> Iterator[None]:
        """A scope around a forward or a backward."""
        if self._engine.global_steps + 1 != self._section["profile_step"]:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self._flops[phase] += counter.get_total_flops()
        if phase == "forward":
            for name, counts in counter.get_flop_counts().items():
                self._modules[name] = self._modules.get(name, 0) + sum(counts.values())

    def end_step(self, seconds: float) -> None:
        """seconds: of the optimizer step that has just ended."""
        if self._engine.global_steps != self._section["profile_step"] + 1:
            return
        text = self._text(seconds)
        if self._section["output_file"]:
            try:
                with open(self._section["output_file"], "w", encoding="utf-8") as file:
                    file.write(text)
                return
            except OSError as error:  # training continues, and the figures are printed
                _C.log_warn(
                    f"flops_profiler.output_file {self._section['output_file']}: cannot be written: {error.strerror}"
                )
        sys.stderr.write(text)

    def _text(self, seconds: float) -> str:
        forward, backward = self._flops["forward"], self._flops["backward"]
        counted = forward + backward
        lines = [
            f"operations of step {self._section['profile_step']} on rank 0 (multiplications and additions)",
            f"  forward   {_scaled(forward)}FLOP",
            f"  backward  {_scaled(backward)}FLOP",
            f"  step {self._engine.global_steps} took {1000 * seconds:.1f} ms: {_scaled(counted / seconds)}FLOP/s",
        ]
        peak = peak_flops(self._engine.device)
        if peak is not None:
            name, rate = peak
            # The convention of MFU: a model needs three times its forward; recomputation does not count.
            lines.append(
                f"  of {name}'s {_scaled(rate)}FLOP/s: MFU {3 * forward / seconds / rate:.1%}, "
                f"with recomputation {counted / seconds / rate:.1%}"
            )
        return "\n".join([*lines, *self._module_lines()]) + "\n"

    def _module_lines(self) -> list[str]:
        deepest = self._section["module_depth"]
        by_depth: dict[int, list[tuple[str, int]]] = {}
        for name, flops in self._modules.items():
            if name != "Global" and (deepest < 0 or name.count(".") <= deepest):
                by_depth.setdefault(name.count("."), []).append((name, flops))
        lines = ["forward by module"]
        if self._section["detailed"]:
            rows = sorted((row for depth in by_depth.values() for row in depth), key=lambda row: _natural(row[0]))
            return lines + [f"  {'  ' * name.count('.')}{name}  {_scaled(flops)}FLOP" for name, flops in rows]
        for depth, rows in sorted(by_depth.items()):
            rows.sort(key=lambda row: -row[1])
            top = ", ".join(f"{name} {_scaled(flops)}FLOP" for name, flops in rows[: self._section["top_modules"]])
            lines.append(f"  depth {depth}: {top}")
        return lines


def peak_flops(device: torch.device) -> tuple[str, float] | None:
    """Name and 16-bit operations per second of a device from its data sheet; None if unknown (also for CPUs)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    sheets = _C.data_sheet_flops()
    known = [sheet for sheet in sheets if sheet in name]
    return (known[-1], sheets[known[-1]]) if known else None


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A sort key that orders layer 2 before layer 10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


def _scaled(value: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} P"
