"""Step time of a GPT at 2 and 4 ranks: stage 0 beside DDP, stage 3 beside FSDP2, all in the same processes, taking turns.

The peers run on gloo; ours on shared memory, which is what CPU ranks of one host get, and in rows of their own on gloo. Losses
are compared before any time is taken. A ratio below 1 means that ours is faster.
"""

import argparse
import re
import sys
from functools import partial

import systems
import torch
import torch.distributed as dist
from common import emit, is_rank, ratio_figures, run_ranks, take_turns

TARGETS = {"stage 0": 1.0, "stage 3": 0.6, "stage 3, a quarter live": None}
LOSS_TOLERANCE = 1e-5


def contest(name: str, config: systems.GptConfig) -> tuple[str, dict]:
    """The peer's name, and every system of the contest by name."""
    if name == "data parallel":
        ours = {"stage 0": partial(systems.engine, stage=0)}
        peer = {"DDP": systems.ddp}
    else:
        quarter = systems.live_quarter(config)
        ours = {"stage 3": partial(systems.engine, stage=3), "stage 3, a quarter live": partial(systems.engine, stage=3, zero=quarter)}
        peer = {"FSDP2": systems.fsdp2}
    on_gloo = {f"{name}, gloo": partial(make, communicator="c10d") for name, make in ours.items()}
    return next(iter(peer)), {**peer, **ours, **on_gloo}


def check_losses(steps: dict[str, systems.Step], peer: str) -> None:
    """Three steps of each: raises AssertionError when a loss differs from the peer's beyond rounding."""
    losses = {name: torch.stack([step() for _ in range(3)]) for name, step in steps.items()}
    for name, values in losses.items():
        torch.testing.assert_close(values, losses[peer], rtol=LOSS_TOLERANCE, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def measure(arguments: argparse.Namespace) -> None:
    dist.init_process_group("gloo")
    config = systems.MODELS[arguments.model]
    peer, makers = contest(arguments.contest, config)
    batch = systems.batch_of(config, arguments.batch)
    steps = {name: make(config, batch) for name, make in makers.items() if name == peer or re.fullmatch(arguments.only, name)}
    check_losses(steps, peer)
    blocks = take_turns(steps, arguments.rounds, arguments.steps, barrier=dist.barrier)
    if dist.get_rank() == 0:
        for name in steps:
            if name == peer:
                continue
            emit(
                "step_time",
                model=arguments.model,
                ranks=dist.get_world_size(),
                ours=name,
                peer=peer,
                **ratio_figures(blocks[name], blocks[peer]),
                ours_ms=round(min(block.wall_s for block in blocks[name]) * 1e3, 1),
                peer_ms=round(min(block.wall_s for block in blocks[peer]) * 1e3, 1),
                target=TARGETS.get(name),
            )
    dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=systems.MODELS, default="10M")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--contest", choices=["data parallel", "sharded"], default="data parallel")
    parser.add_argument("--batch", type=int, default=4, help="sequences of 64 tokens per rank")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=4, help="steps of one block")
    parser.add_argument("--only", default=".*", metavar="PATTERN", help="only those of ours whose whole name matches")
    arguments = parser.parse_args()
    if is_rank():
        measure(arguments)
    else:
        run_ranks(arguments.ranks, sys.argv[1:])


if __name__ == "__main__":
    main()
