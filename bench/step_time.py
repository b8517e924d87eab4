"""Step time of a GPT at 2 and 4 ranks: stage 0 compared with DDP, stage 3 with FSDP2, alternating in the same
processes.

The peers use gloo. Zeropage uses shared memory, as CPU ranks of one host do by default, and in separate rows gloo.
Losses are compared before any time is measured. A ratio below 1 means that ours is faster.

The contest "shared cores" is short: stages 0 and 3 compared with DDP, the small model at 2 ranks, in many blocks of few
steps. With `--hogs 2` only this contest runs, while two busy processes compete for the cores.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median

import systems
import torch
import torch.distributed as dist
from common import emit, hogs, is_rank, ratio_figures, run_ranks, take_turns

CONTESTS = ("data parallel", "sharded", "shared cores")
TARGETS = {("stage 0", "DDP"): 1.0, ("stage 3", "FSDP2"): 0.6}
BUSY_TARGET = 1.0
LOSS_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Job:
    """The measurement of one set of processes."""

    model: str
    ranks: int
    contest: str  # a name in CONTESTS
    rows: int  # of 64 tokens, per rank
    rounds: int
    steps: int  # of one block
    on_gloo: bool  # also measures Zeropage on gloo
    hogs: int = 0  # busy processes that compete for the cores


def jobs() -> list[Job]:
    """All jobs. The large model has no rows on gloo at 4 ranks, because so many copies of it do not fit a small
    machine."""
    pairs = [(ranks, contest) for ranks in (2, 4) for contest in ("data parallel", "sharded")]
    small = [Job("10M", *pair, rows=4, rounds=11, steps=4, on_gloo=True) for pair in pairs]
    large = [Job("100M", *pair, rows=2, rounds=7, steps=1, on_gloo=pair[0] == 2) for pair in pairs]
    shared = Job("10M", 2, "shared cores", rows=4, rounds=12, steps=2, on_gloo=False)
    return [*small, shared, *large]


def contestants(job: Job) -> tuple[str, dict]:
    """The peer's name, and a function that makes each system of the contest, by name."""
    peer: str
    make_peer: Callable[..., systems.Step]
    stage_0, stage_3 = (partial(systems.engine, stage=stage) for stage in (0, 3))
    if job.contest == "sharded":
        peer, make_peer = "FSDP2", systems.fsdp2
        quarter = systems.live_quarter(systems.MODELS[job.model])
        ours = {"stage 3": stage_3, "stage 3, a quarter live": partial(stage_3, zero=quarter)}
    else:
        peer, make_peer = "DDP", systems.ddp
        ours = {"stage 0": stage_0} if job.contest == "data parallel" else {"stage 0": stage_0, "stage 3": stage_3}
    if job.on_gloo:
        ours |= {f"{name}, gloo": partial(make, communicator="c10d") for name, make in ours.items()}
    return peer, {peer: make_peer, **ours}


def check_losses(steps: dict[str, systems.Step], peer: str) -> None:
    """Compares three steps of each system. Raises AssertionError when a loss differs from the peer's by more than
    rounding."""
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
    absolute = {
        "ms": {name: round(min(block.wall_s for block in of_name) * 1e3, 1) for name, of_name in blocks.items()},
        "median_ms": {
            name: round(median(block.wall_s for block in of_name) * 1e3, 1) for name, of_name in blocks.items()
        },
        "sleeps": {name: round(median(block.sleeps for block in of_name), 1) for name, of_name in blocks.items()},
    }
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
            **{f"ours_{key}": figures[name] for key, figures in absolute.items()},
            **{f"peer_{key}": figures[peer] for key, figures in absolute.items()},
            target=BUSY_TARGET if job.hogs else TARGETS.get((name, peer)),
        )
    dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=systems.MODELS, help="only this one")
    parser.add_argument("--ranks", type=int, help="only so many")
    parser.add_argument("--contest", choices=CONTESTS, help="only this one")
    parser.add_argument("--job", type=lambda text: Job(**json.loads(text)), help=argparse.SUPPRESS)  # the job of a rank
    parser.add_argument("--hogs", type=int, default=0, help="busy processes that compete for the cores (0)")
    arguments = parser.parse_args()
    if is_rank():
        measure(arguments.job)
        return
    if arguments.hogs:
        arguments.contest = "shared cores"
    wanted = [
        job
        for job in jobs()
        if all(getattr(arguments, key) in (None, getattr(job, key)) for key in ("model", "ranks", "contest"))
    ]
    if not wanted:
        parser.error("no contest has this model and this number of ranks")
    with hogs(arguments.hogs):
        for job in wanted:
            run_ranks(job.ranks, ["--job", json.dumps(asdict(replace(job, hogs=arguments.hogs)))])


if __name__ == "__main__":
    main()
