"""The cost per parameter with very many parameters: 1,000 to 100,000 of 16 elements each, stages 0 and 3, one and two
ranks.

Every row is one operation in microseconds per parameter, compared with the same operation of plain PyTorch on one rank
if it exists: the step with fused AdamW, torch.save, torch.load. If a cost grows with the square of the number of
parameters, the figure grows from row to row. The targets: at 100,000 at most twice the figure at 1,000, and a load at
most as long as torch.load.

    {"operation": "load", "parameters": 100000, "ranks": 1, "stage": 3, "us_per_parameter": ...,
    "torch_us_per_parameter": ..., "ratio": ...}
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import emit, is_rank, run_ranks

import zeropage
from zeropage import _C

NUMEL = 16


class Chain(torch.nn.Module):
    """Multiplies by one parameter after the other: one operator per parameter, and nothing else."""

    def __init__(self, parameters: int):
        super().__init__()
        self.weights = torch.nn.ParameterList(
            torch.ones(NUMEL) + 0.001 * (i % 7 - 3) / parameters for i in range(parameters)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight in self.weights:
            x = x * weight
        return x.mean()


def seconds_of(work: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def plain_seconds(parameters: int, rounds: int, file: Path) -> dict[str, float]:
    """PyTorch's times; operations that it does not have are missing."""
    model = Chain(parameters)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batch = torch.ones(NUMEL)

    def step() -> None:
        model(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    def save() -> None:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)

    step()
    times = {
        "step": seconds_of(step, rounds),
        "save": seconds_of(save, rounds),
        "load": seconds_of(lambda: torch.load(file), rounds),
    }
    file.unlink()
    return times


def engine_seconds(parameters: int, stage: int, rounds: int, folder: Path) -> dict[str, float]:
    """Our times; rank 0 does the operations of a single process."""
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
    }
    model = Chain(parameters)
    batch = torch.ones(NUMEL)
    begun = time.perf_counter()
    engine, *_ = zeropage.initialize(model=model, config=config)
    times = {"initialize": time.perf_counter() - begun}

    def step() -> None:
        engine.backward(engine(batch))
        engine.step()

    step()
    times["step"] = seconds_of(step, rounds)
    times["save"] = seconds_of(lambda: engine.save_checkpoint(folder, "a"), rounds)
    times["load"] = seconds_of(lambda: engine.load_checkpoint(folder), rounds)
    if engine.global_rank == 0:
        times["verify"] = seconds_of(lambda: _C.Checkpoint(str(folder / "a")).verify(), rounds)
        exported = [folder / f"export{number}" for number in range(rounds)]
        remaining = iter(exported)
        times["export"] = seconds_of(
            lambda: _C.export_model(_C.Checkpoint(str(folder / "a")), str(next(remaining)), 5_000_000_000, False),
            rounds,
        )
        times["plan"] = seconds_of(lambda: zeropage.plan(exported[0] / "model.safetensors"), rounds)
    return times


def measure(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    rank = zeropage.distributed.current_world().rank
    ranks = zeropage.distributed.current_world().size
    for parameters in options.parameters:
        plain = plain_seconds(parameters, options.rounds, Path(options.folder) / f"plain-{rank}")
        for stage in options.stages:
            folder = Path(options.folder) / f"{ranks}-{parameters}-{stage}"
            for operation, seconds in engine_seconds(parameters, stage, options.rounds, folder).items():
                if rank != 0:
                    continue
                figures: dict[str, object] = {"us_per_parameter": round(1e6 * seconds / parameters, 2)}
                if operation in plain:
                    figures["torch_us_per_parameter"] = round(1e6 * plain[operation] / parameters, 2)
                    figures["ratio"] = round(seconds / plain[operation], 2)
                emit("many_parameters", operation=operation, parameters=parameters, ranks=ranks, stage=stage, **figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=json.loads, default=[1_000, 10_000, 100_000], metavar="[1000,100000]")
    parser.add_argument("--ranks", type=json.loads, default=[1, 2], metavar="[1,2]")
    parser.add_argument("--stages", type=json.loads, default=[0, 3], metavar="[0,3]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where checkpoints are written; default: the system's temporary folder")
    options = parser.parse_args()
    if is_rank():
        measure(options)
        return
    with tempfile.TemporaryDirectory(prefix="zp-bench-", dir=options.folder) as folder:
        for size in options.ranks:
            run_ranks(size, [*sys.argv[1:], "--folder", folder])


if __name__ == "__main__":
    main()
