"""`deepspeed.profiling.flops_profiler` for programs that count the operations of a model themselves. torch counts
matrix products, convolutions and attention, with a multiplication and an addition as two operations. The section
"flops_profiler" of a configuration counts a step of an engine."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..errors import UsageError


class FlopsProfiler:
    """Counts the forwards between `start_profile` and `stop_profile`."""

    def __init__(self, model: torch.nn.Module, ds_engine: Any = None, recompute_fwd_factor: float = 0.0):
        """ds_engine, recompute_fwd_factor: accepted; recomputation is counted when it runs."""
        self.model = model
        self.started = False
        self._flops, self._seconds = 0, 0.0
        self._by_module: dict[str, int] = {}

    def start_profile(self, ignore_list: Sequence[type] | None = None) -> None:
        """ignore_list: accepted; every operator counts. Raises UsageError if it has already been started."""
        if self.started:
            raise UsageError(
                "start_profile: the profile has already been started; call stop_profile and end_profile first"
            )
        self.reset_profile()
        self._counter = FlopCounterMode(display=False)
        self._counter.__enter__()
        self._begin = time.perf_counter()
        self.started = True

    def stop_profile(self) -> None:
        if not self.started:
            return
        self._seconds = time.perf_counter() - self._begin
        self._counter.__exit__(None, None, None)
        self.started = False
        self._flops = self._counter.get_total_flops()
        self._by_module = {name: sum(counts.values()) for name, counts in self._counter.get_flop_counts().items()}

    def reset_profile(self) -> None:
        self._flops, self._seconds, self._by_module = 0, 0.0, {}

    def end_profile(self) -> None:
        self.stop_profile()
        self.reset_profile()

    def get_total_flops(self, as_string: bool = False) -> int | str:
        return number_to_string(self._flops, "FLOPs") if as_string else self._flops

    def get_total_macs(self, as_string: bool = False) -> int | str:
        """Half of the operations: a multiplication and an addition count as one."""
        return number_to_string(self._flops // 2, "MACs") if as_string else self._flops // 2

    def get_total_duration(self, as_string: bool = False) -> float | str:
        """Seconds."""
        return f"{self._seconds:.4g} s" if as_string else self._seconds

    def get_total_params(self, as_string: bool = False) -> int | str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return number_to_string(count) if as_string else count

    def print_model_profile(
        self,
        profile_step: int = 1,
        module_depth: int = -1,
        top_modules: int = 1,
        detailed: bool = True,
        output_file: str | None = None,
    ) -> None:
        """Writes a line per module down to `module_depth` (-1: all) to a file, or to stdout. The other arguments are
        accepted."""
        lines = [
            f"step {profile_step}: {self.get_total_flops(True)}, {self.get_total_params(True)} parameters, {self.get_total_duration(True)}"
        ]
        depths = {name: name.count(".") for name in self._by_module}
        lines += [
            f"{name}: {number_to_string(flops, 'FLOPs')}"
            for name, flops in self._by_module.items()
            if not 0 <= module_depth < depths[name]
        ]
        text = "\n".join(lines) + "\n"
        if output_file is None:
            sys.stdout.write(text)
        else:
            with open(output_file, "w", encoding="utf-8") as file:
                file.write(text)


def get_model_profile(
    model: torch.nn.Module,
    input_shape: tuple[int, ...] | None = None,
    args: Sequence[Any] = (),
    kwargs: dict[str, Any] | None = None,
    print_profile: bool = True,
    detailed: bool = True,
    module_depth: int = -1,
    top_modules: int = 1,
    warm_up: int = 1,
    as_string: bool = True,
    output_file: str | None = None,
    ignore_modules: Sequence[type] | None = None,
    mode: str = "forward",
) -> tuple[Any, Any, Any]:
    """(FLOPs, MACs, parameters) of one forward, or of `model.generate` if mode is "generate". input_shape: a tensor of
    ones of this shape replaces args."""
    inputs = [torch.ones(input_shape, dtype=next(model.parameters()).dtype)] if input_shape is not None else list(args)
    call = model.generate if mode == "generate" else model
    for _ in range(warm_up):
        call(*inputs, **(kwargs or {}))
    profiler = FlopsProfiler(model)
    profiler.start_profile()
    try:
        call(*inputs, **(kwargs or {}))
    finally:
        profiler.stop_profile()
    if print_profile:
        profiler.print_model_profile(warm_up, module_depth, top_modules, detailed, output_file)
    return profiler.get_total_flops(as_string), profiler.get_total_macs(as_string), profiler.get_total_params(as_string)


def number_to_string(num: float, units: str = "", precision: int = 2) -> str:
    """ "1.50 K" of 1500."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(num) >= factor:
            return f"{num / factor:.{precision}f} {prefix}{units}".rstrip()
    return f"{num:g} {units}".rstrip()
