"""Step time of a GPT at 2 and 4 ranks: stage 0 beside DDP, stage 3 beside FSDP2, all in the same processes, taking turns.

The peers run on gloo; ours on shared memory, which is what CPU ranks of one host get, and in rows of their own on gloo. Losses
are compared before any time is taken. A ratio below 1 means that ours is faster. With `--hogs 2` two busy processes compete for the
cores during all of it.
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from functools import partial

import systems
import torch
import torch.distributed as dist
from common import emit, hogs, is_rank, ratio_figures, run_ranks, take_turns

TARGETS = {"stage 0": 1.0, "stage 3": 0.6}
LOSS_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Job:
    """What one set of processes measures."""

    model: str
    ranks: int
    contest: str  # "data parallel" or "sharded"
    rows: int  # of 64 tokens, per rank
    rounds: int
    steps: int  # of one block
    on_gloo: bool  # with rows for ours on gloo
    hogs: int = 0  # busy processes that compete for the cores


def jobs() -> list[Job]:
    """All of them. The large model goes without rows on gloo at 4 ranks: that many copies of it do not fit a small machine."""
    pairs = [(ranks, contest) for ranks in (2, 4) for contest in ("data parallel", "sharded")]
    small = [Job("10M", *pair, rows=4, rounds=11, steps=4, on_gloo=True) for pair in pairs]
    large = [Job("100M", *pair, rows=2, rounds=7, steps=1, on_gloo=pair[0] == 2) for pair in pairs]
    return small + large


def contestants(job: Job) -> tuple[str, dict]:
    """The peer's name, and how every system of the contest is made, by name."""
    if job.contest == "data parallel":
        peer, make_peer = "DDP", systems.ddp
        ours = {"stage 0": partial(systems.engine, stage=0)}
    else:
        peer, make_peer = "FSDP2", systems.fsdp2
        quarter = systems.live_quarter(systems.MODELS[job.model])
        stage_3 = partial(systems.engine, stage=3)
        ours = {"stage 3": stage_3, "stage 3, a quarter live": partial(stage_3, zero=quarter)}
    if job.on_gloo:
        ours |= {f"{name}, gloo": partial(make, communicator="c10d") for name, make in ours.items()}
    return peer, {peer: make_peer, **ours}


def check_losses(steps: dict[str, systems.Step], peer: str) -> None:
    """Three steps of each. Raises AssertionError when a loss differs from the peer's beyond rounding."""
    losses = {name: torch.stack([step() for _ in range(3)]) for name, step in steps.items()}
    for name, values in losses.items():
        if not torch.allclose(values, losses[peer], rtol=LOSS_TOLERANCE, atol=0):
            raise AssertionError(f"losses of {name}: {values.tolist()}, of {peer}: {losses[peer].tolist()}")


def measure(job: Job) -> None:
    dist.init_process_group("gloo")
    config = systems.MODELS[job.model]
    batch = systems.batch_of(config, job.rows)
    peer, makers = contestants(job)
    steps = {name: make(config, batch) for name, make in makers.items()}
    check_losses(steps, peer)
    blocks = take_turns(steps, job.rounds, job.steps, barrier=dist.barrier)
    least_ms = {name: round(min(block.wall_s for block in of_name) * 1e3, 1) for name, of_name in blocks.items()}
    for name in steps:
        if name == peer or dist.get_rank() != 0:
            continue
        emit(
            "step_time",
            model=job.model,
            ranks=job.ranks,
            hogs=job.hogs,
            ours=name,
            peer=peer,
            **ratio_figures(blocks[name], blocks[peer]),
            ours_ms=least_ms[name],
            peer_ms=least_ms[peer],
            target=TARGETS.get(name),
        )
    dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=systems.MODELS, help="only this one")
    parser.add_argument("--ranks", type=int, help="only so many")
    parser.add_argument("--contest", choices=["data parallel", "sharded"], help="only this one")
    parser.add_argument("--job", type=lambda text: Job(**json.loads(text)), help=argparse.SUPPRESS)  # what a rank is to do
    parser.add_argument("--hogs", type=int, default=0, help="busy processes that compete for the cores (0)")
    arguments = parser.parse_args()
    if is_rank():
        measure(arguments.job)
        return
    with hogs(arguments.hogs):
        for job in jobs():
            if all(getattr(arguments, key) in (None, getattr(job, key)) for key in ("model", "ranks", "contest")):
                run_ranks(job.ranks, ["--job", json.dumps(asdict(replace(job, hogs=arguments.hogs)))])


if __name__ == "__main__":
    main()
