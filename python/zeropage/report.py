"""The progress line and the memory table of a run. Rank 0 prints them."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from . import _C
from ._C import format_bytes, process_bytes

if TYPE_CHECKING:
    from .engine import ZeropageEngine

Batch = TypeVar("Batch")

__all__ = [
    "MEMORY_KINDS",
    "MemoryReport",
    "format_bytes",
    "gather_memory",
    "process_bytes",
    "progress",
    "progress_sample",
]

MEMORY_KINDS = ("parameters", "gradients", "optimizer", "frames", "buffers")


@dataclass(frozen=True)
class MemoryReport:
    """Bytes per rank: counted bytes (for frames the peak), and bytes by the formula for this stage and for stage 0. For
    optimizers of PyTorch the formula has only the state of Muon. The state of others is only counted, when it exists,
    in the memory of its tensors.

    ranks: on the device. host: offloaded to the host. If the device is the CPU, the two are still counted separately.
    """

    stage: int
    ranks: list[dict[str, int]]
    host: list[dict[str, int]]
    formula: _C.StateBytes
    formula_host: _C.StateBytes
    formula_stage_0: _C.StateBytes

    def table(self) -> str:
        """Aligned lines, one per kind."""
        device, host = ([[rank[kind] for kind in MEMORY_KINDS] for rank in tier] for tier in (self.ranks, self.host))
        return _C.format_memory_table(self.stage, device, host, self.formula, self.formula_host, self.formula_stage_0)


def gather_memory(
    core: _C.Engine,
    communicator: _C.Communicator,
    stage: int,
    torch_states: tuple[int, int] = (0, 0),
    torch_formula: int = 0,
    offloaded: bool = False,
) -> MemoryReport:
    """The bytes of every rank. Collective. torch_states: bytes that an optimizer of PyTorch keeps, on the device and on
    the host. torch_formula: the same for all ranks together by its formula, on the host if `offloaded`."""
    ranks, host = (
        [dict(zip(MEMORY_KINDS, row, strict=True)) for row in tier]
        for tier in _C.gather_memory(core, communicator, torch_states)
    )
    formula, formula_host, stage_0 = core.formula_bytes(), core.formula_host_bytes(), core.formula_bytes_at_stage(0)
    own_formula = -(-torch_formula // (communicator.size if stage > 0 else 1))
    (formula_host if offloaded else formula).optimizer += own_formula
    stage_0.optimizer += torch_formula
    return MemoryReport(stage, ranks, host, formula, formula_host, stage_0)


def progress(
    batches: Iterable[Batch],
    engine: "ZeropageEngine",
    *,
    total_steps: int = 0,
    unit: str = "samples",
    units_per_sample: float = 1.0,
) -> Iterator[Batch]:
    """Passes the batches through and shows a progress line after each optimizer step.

    total_steps: for the time left; 0: unknown. units_per_sample: for example 128 with `unit="tokens"` for sequences of
    128 tokens.
    """
    line = _C.Progress(total_steps, unit) if engine.global_rank == 0 else None
    shown = engine.global_steps
    try:
        for batch in batches:
            yield batch
            if line is not None and engine.global_steps != shown:
                shown = engine.global_steps
                line.update(*progress_sample(engine, units_per_sample))
    finally:
        if line is not None:
            line.finish()


def progress_sample(
    engine: "ZeropageEngine", units_per_sample: float
) -> tuple[int, float, float, float, float | None, int, float]:
    """Step, loss, learning rate, units and loss scale of the last optimizer step; bytes to and from the drive so far,
    and waits for it."""
    rate = engine.get_lr()[0] if engine._has_optimizer else 0.0
    scale = engine.loss_scale() if engine.fp16_enabled() else None
    read, written, waited_s = engine._core.disk_traffic()
    loss = engine.known_loss()
    return (
        engine.global_steps,
        math.nan if loss is None else loss,
        rate,
        units_per_sample * engine.train_batch_size(),
        scale,
        read + written,
        waited_s,
    )
