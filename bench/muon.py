"""Muon's step compared with torch.optim.Muon's under DDP and with AdamW's, for the same tokens; and the bytes of
optimizer state on a rank.

All of them train the same model in the same process, in turns. Muon updates the matrices ("standard", in bf16, like
torch's), AdamW the rest. With --offload one more Muon has its masters in host memory or on a drive.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable

import torch
from common import emit, is_rank, ratio_figures, run_ranks, take_turns
from systems import ADAMW, MODELS, Gpt, GptConfig, Step, batch_of
from torch.nn.parallel import DistributedDataParallel

import zeropage
from zeropage.muon import takes_muon

TARGET = 1.0
LR = 0.02
MUON = {
    "lr": LR,
    "adam_lr": ADAMW["lr"],
    "weight_decay": ADAMW["weight_decay"],
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "ns_method": "standard",
}


def of_torch(config: GptConfig, batch: torch.Tensor) -> tuple[Step, Callable[[], int]]:
    """(step, bytes of state so far)"""
    torch.manual_seed(0)
    model = DistributedDataParallel(Gpt(config), gradient_as_bucket_view=True)
    named = list(model.module.named_parameters())
    optimizers = [
        torch.optim.Muon([p for name, p in named if takes_muon(name, p)], lr=LR, weight_decay=ADAMW["weight_decay"]),
        torch.optim.AdamW([p for name, p in named if not takes_muon(name, p)], fused=True, **ADAMW),
    ]

    def step() -> torch.Tensor:
        loss = model(batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    def state_bytes() -> int:
        return sum(value.nbytes for each in optimizers for state in each.state.values() for value in state.values())

    return step, state_bytes


def of_engine(config: GptConfig, batch: torch.Tensor, zero: dict, optimizer: dict) -> tuple[Step, Callable[[], int]]:
    torch.manual_seed(0)
    engine = zeropage.initialize(
        model=Gpt(config),
        config={
            "train_micro_batch_size_per_gpu": len(batch),
            "zero_optimization": zero,
            "optimizer": optimizer,
        },
    )[0]

    def step() -> torch.Tensor:
        loss = engine(batch)
        engine.backward(loss)
        engine.step()
        return loss.detach()

    def state_bytes() -> int:
        memory, rank = engine.memory_report(), zeropage.distributed.current_world().rank
        return sum(tier[rank]["optimizer"] for tier in (memory.ranks, memory.host))

    return step, state_bytes


def measure(size: str, rows: int, stage: int, offload: str | None, folder: str, rounds: int, steps: int) -> None:
    config, world = MODELS[size], zeropage.distributed.current_world()
    zeropage.init_distributed()
    batch = batch_of(config, rows)
    made = {
        "torch": of_torch(config, batch),
        "muon": of_engine(config, batch, {"stage": stage}, {"type": "Muon", "params": MUON}),
        "adamw": of_engine(config, batch, {"stage": stage}, {"type": "AdamW", "params": ADAMW}),
    }
    contests = [("muon", "torch"), ("muon", "adamw")]
    if offload is not None:
        target = {"device": offload} if offload == "cpu" else {"device": offload, "nvme_path": folder}
        zero = {"stage": stage, "offload_optimizer": target}
        made["muon, offloaded"] = of_engine(config, batch, zero, {"type": "Muon", "params": MUON})
        contests.append(("muon, offloaded", "muon"))
    systems = {name: step for name, (step, _) in made.items()}
    losses = {name: torch.stack([step() for _ in range(4)]) for name, step in systems.items()}
    torch.testing.assert_close(losses["muon"], losses["torch"], rtol=1e-3, atol=0)  # because products are in bf16
    assert offload is None or torch.equal(losses["muon, offloaded"], losses["muon"])
    blocks = take_turns(systems, rounds, steps, torch.distributed.barrier)
    state = {name: state_bytes() for name, (_, state_bytes) in made.items()}
    if world.rank != 0:
        return
    shared = {"ranks": world.size, "model": size, "rows": rows, "stage": stage, "offload": offload}
    for name, against in contests:
        emit(
            "muon",
            **shared,
            step=name,
            compared_with=against,
            ms=round(min(block.wall_s for block in blocks[name]) * 1e3, 1),
            **ratio_figures(blocks[name], blocks[against]),
            target=TARGET if against == "torch" else None,
            state_ratio=round(state[name] / state[against], 3),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="10M")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--offload", choices=("cpu", "nvme"), help="one more Muon, whose masters are there")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="on the drive")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="steps of one block")
    arguments = parser.parse_args()
    if is_rank():
        measure(
            arguments.model,
            arguments.rows,
            arguments.stage,
            arguments.offload,
            arguments.folder,
            arguments.rounds,
            arguments.steps,
        )
        return
    run_ranks(arguments.ranks, sys.argv[1:])


if __name__ == "__main__":
    main()
