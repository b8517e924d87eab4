"""The file of `zeropage.metrics_file`: what a run was and did, one JSON document a line, for `zeropage report`.

    {"record": "run", ...}     when an engine begins: configuration, ranks, the formula's bytes; a run that goes on appends another
    {"record": "step", ...}    after every optimizer step: loss, rate, time and its parts, bytes by kind, counters of the pager
    {"record": "pages", ...}   faults and evictions of every page since the engine was made: at steps 1, 10, 100, 200, ... and the end

Rank 0 writes, and its bytes and times are its own. Each line is handed to the system at once. A line that cannot be written ends no
training (report/append_file.h).
"""

import json
import math
import time
from typing import TYPE_CHECKING, Any

from . import _C, __version__, report

if TYPE_CHECKING:
    from .engine import ZeropageEngine

_STEPS_BETWEEN_PAGES = 100


class MetricsFile:
    """Appends to `path`, whose folder is made. Only `__init__` raises."""

    def __init__(self, path: str, engine: "ZeropageEngine", config: dict[str, Any]):
        """Raises OSError."""
        self._engine = engine
        self._closed = False
        self._file = _C.AppendFile(path, begins='{"record":"run"')
        self._write(self._run_record(config))

    def write_step(self, parts: dict[str, float], seconds: float) -> None:
        """seconds: since the last step; parts: of that, by name. Cost: one system call, and every 100 steps one more."""
        engine = self._engine
        pager = engine._core.pager_stats
        record = {
            "record": "step",
            "step": engine.global_steps,
            "samples": engine.global_samples,
            "time_s": round(time.time(), 3),
            "loss": engine.known_loss(),
            "lr": engine.get_lr()[0],
            "grad_norm": engine.get_global_grad_norm(),
            "loss_scale": engine.loss_scale() if engine.fp16_enabled() else None,
            "applied": engine.was_step_applied(),
            "skipped_steps": engine.skipped_steps,
            "overflow_parameter": engine._core.last_step.overflow_parameter or None,
            "seconds": {"whole": seconds, **parts},
            "bytes": {kind: list(now_and_peak) for kind, now_and_peak in engine._core.measured_bytes().items()},
            "host_bytes": {kind: list(held) for kind, held in engine._core.measured_bytes(host=True).items() if held[1]},
            "process_bytes": report.process_bytes(),
            "faults": pager.faults,
            "prefetches": pager.prefetches,
            "evictions": pager.evictions,
            "gathered_bytes": pager.gathered_bytes,
        }
        self._write(record)
        if engine.global_steps in (1, 10) or engine.global_steps % _STEPS_BETWEEN_PAGES == 0:
            self._write_pages()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._write_pages()
            self._file.close()

    def _run_record(self, config: dict[str, Any]) -> dict[str, Any]:
        engine = self._engine
        tiers = engine._core.formula_bytes(), engine._core.formula_host_bytes()
        live_numel = config["zero_optimization"]["stage3_max_live_parameters"]
        element_bytes = 2 if engine.fp16_enabled() or engine.bfloat16_enabled() else 4
        return {
            "record": "run",
            "version": __version__,
            "time_s": round(time.time(), 3),
            "world_size": engine.world_size,
            "stage": engine.zero_optimization_stage(),
            "device": str(engine.device),
            "trainable_parameters": engine._core.trainable_numel,
            "formula_bytes": {kind: sum(getattr(tier, kind) for tier in tiers) for kind in ("parameters", "gradients", "optimizer")},
            "live_limit_bytes": live_numel * element_bytes if engine.zero_optimization_stage() == 3 else None,
            "config": config,
        }

    def _write_pages(self) -> None:
        pages = self._engine._core.page_counts()
        self._write({"record": "pages", "step": self._engine.global_steps, "pages": pages})

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(_finite(record), separators=(",", ":")) + "\n")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, (list, tuple)) else value
