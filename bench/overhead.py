"""The engine's overhead per layer: 200 layers of Linear(16, 16), stage 3, compared with plain PyTorch with fused AdamW.

At one rank nothing is communicated, so the difference is the engine's own work: finding the operators that touch
parameters, moving gradients, the global check, the update. In the row with two ranks, pages are really gathered and
evicted. Figures are microseconds per layer and step (forward, backward and update), ours minus plain.

The rows "virtual gradients" are the cost of `p.grad` for a program that never reads it. No engine without it exists for
comparison, so the rows are an upper bound: backwards of a loss that uses only the last layer are added to a step. Each
of them removes all gradients of the model and shows them again, and does all other work that an engine does per
parameter and backward.
"""

import argparse
import json
import statistics
import sys

import torch
from common import emit, is_rank, run_ranks, take_turns
from torch import nn

import zeropage

LAYERS = 200
WIDTH = 16
TARGET_US = 3.0
GRADIENTS_TARGET_US = 0.3  # per parameter and step
BACKWARDS = 20  # that are added
SETTINGS = {"default settings": {}, "persistence threshold 0": {"stage3_param_persistence_threshold": 0}}


def make_model(layers: int = LAYERS) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))


def plain_system(batch: torch.Tensor):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)

    def step() -> torch.Tensor:
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def engine_system(batch: torch.Tensor, zero: dict, layers: int = LAYERS, more_backwards: int = 0):
    """more_backwards: the number of additional backwards, which use only the last layer."""
    engine, _, _, _ = zeropage.initialize(
        model=make_model(layers),
        config={
            "train_micro_batch_size_per_gpu": len(batch),
            "zero_optimization": {"stage": 3, **zero},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01}},
        },
    )

    def step() -> torch.Tensor:
        loss = engine(batch).square().mean()
        engine.backward(loss)
        for _ in range(more_backwards):
            engine.backward(engine.module[-1](batch).sum())
        engine.step()
        return loss

    return step


def measure_gradients(batch: torch.Tensor, stage: int, rounds: int, steps: int) -> None:
    zero = {"stage": stage}
    counts = [(layers, more) for layers in (1, LAYERS) for more in (0, BACKWARDS)]
    blocks = take_turns({count: engine_system(batch, zero, *count) for count in counts}, rounds, steps)
    seconds = {count: [block.wall_s for block in of_count] for count, of_count in blocks.items()}
    added = [
        (many - few) - (many_of_one - few_of_one)
        for many, few, many_of_one, few_of_one in zip(
            seconds[LAYERS, BACKWARDS], seconds[LAYERS, 0], seconds[1, BACKWARDS], seconds[1, 0], strict=True
        )
    ]
    of_a_step = [each / BACKWARDS for each in added]
    emit(
        "virtual gradients",
        stage=stage,
        us_per_parameter_at_most=round(statistics.median(of_a_step) / (2 * (LAYERS - 1)) * 1e6, 3),
        ratio_at_most=round(
            statistics.median(step / (step - each) for each, step in zip(of_a_step, seconds[LAYERS, 0], strict=True)), 4
        ),
        target_us=GRADIENTS_TARGET_US,
    )


def measure(rounds: int, steps: int) -> None:
    torch.set_num_threads(1)  # layers this small have no work for more threads
    world = zeropage.distributed.current_world()
    torch.manual_seed(1)
    batch = torch.randn(8, WIDTH)
    systems = {"plain": plain_system(batch)}
    systems |= {name: engine_system(batch, zero) for name, zero in SETTINGS.items()}
    losses = {name: [step().item() for _ in range(5)] for name, step in systems.items()}
    for values in losses.values():
        torch.testing.assert_close(torch.tensor(values), torch.tensor(losses["plain"]), rtol=1e-5, atol=0)
    blocks = take_turns(systems, rounds, steps)
    if world.rank != 0:
        return
    per_layer_us = {name: [block.wall_s / LAYERS * 1e6 for block in of_name] for name, of_name in blocks.items()}
    for name in SETTINGS:
        pairs = zip(per_layer_us[name], per_layer_us["plain"], strict=True)
        emit(
            "overhead",
            ranks=world.size,
            settings=name,
            us_per_layer=round(statistics.median(ours - plain for ours, plain in pairs), 2),
            us_per_layer_of_minima=round(min(per_layer_us[name]) - min(per_layer_us["plain"]), 2),
            plain_us_per_layer=round(min(per_layer_us["plain"]), 2),
            target_us=TARGET_US if world.size == 1 else None,
        )
    if world.size == 1:
        for stage in (0, 2, 3):
            measure_gradients(batch, stage, rounds, max(1, steps // 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--steps", type=int, default=20, help="steps of one block")
    parser.add_argument("--ranks", type=json.loads, default=[1, 2], metavar="[1,2]")
    arguments = parser.parse_args()
    if is_rank():
        measure(arguments.rounds, arguments.steps)
        return
    for size in arguments.ranks:
        run_ranks(size, sys.argv[1:])


if __name__ == "__main__":
    main()
