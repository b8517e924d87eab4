"""The systems that the benches compare, on the same model: steps of peers in `torch` with their best settings, and of
Zeropage."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import zeropage

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from gpt import Gpt, GptConfig  # noqa: E402

MODELS = {
    "10M": GptConfig(layers=8, width=320, heads=5, context=64),
    "100M": GptConfig(layers=14, width=768, heads=12, context=64),
}
ADAMW = {"lr": 1e-3, "weight_decay": 0.01}

Step = Callable[[], torch.Tensor]


def batch_of(config: GptConfig, rows: int) -> torch.Tensor:
    """tokens [rows, context + 1], different on every rank"""
    generator = torch.Generator().manual_seed(zeropage.distributed.current_world().rank)
    return torch.randint(config.vocabulary, (rows, config.context + 1), generator=generator)


def _plain_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> Step:
    def step() -> torch.Tensor:
        loss = model(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def ddp(config: GptConfig, batch: torch.Tensor) -> Step:
    """Data parallel, gradients as views of the buckets, fused AdamW."""
    model = DistributedDataParallel(Gpt(config), gradient_as_bucket_view=True)
    return _plain_step(model, torch.optim.AdamW(model.parameters(), fused=True, **ADAMW), batch)


def fsdp2(config: GptConfig, batch: torch.Tensor, compiled: bool = False) -> Step:
    """`fully_shard` on every block and on the rest, fused AdamW. compiled: compiles every block separately, as PyTorch
    advises, because the hooks between blocks cannot be compiled."""
    model = Gpt(config)
    for block in model.blocks if compiled else ():
        block.compile(fullgraph=True)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return _plain_step(model, torch.optim.AdamW(model.parameters(), fused=True, **ADAMW), batch)


def live_quarter(config: GptConfig) -> dict[str, int]:
    """Settings with which a quarter of the parameters can be resident."""
    with torch.device("meta"):
        numel = sum(parameter.numel() for parameter in Gpt(config).parameters())
    return {"stage3_max_live_parameters": numel // 4}


def make_engine(
    config: GptConfig, batch: torch.Tensor, stage: int, zero: dict | None = None, communicator: str = "auto"
) -> zeropage.ZeropageEngine:
    """An engine with the default configuration except for `zero`."""
    core, _, _, _ = zeropage.initialize(
        model=Gpt(config),
        config={
            "train_micro_batch_size_per_gpu": len(batch),
            "zero_optimization": {"stage": stage, **(zero or {})},
            "optimizer": {"type": "AdamW", "params": ADAMW},
            "zeropage": {"communicator": communicator},
        },
    )
    return core


def engine_step(core: zeropage.ZeropageEngine, batch: torch.Tensor) -> Step:
    def step() -> torch.Tensor:
        loss = core(batch)
        core.backward(loss)
        core.step()
        return loss.detach()

    return step


def engine(config: GptConfig, batch: torch.Tensor, stage: int, **settings: Any) -> Step:
    """A step of an engine; settings: those of `make_engine`."""
    return engine_step(make_engine(config, batch, stage, **settings), batch)
