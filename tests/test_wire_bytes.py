"""Bytes that cross the network per step, counted by the system on the loopback interface of a network namespace of our
own."""

import json

import pytest
import torch
import torch.distributed as dist
from network_namespace import loopback_bytes, run_in_namespace
from torch import nn

import zeropage

WARMUP_STEPS = 2
STEPS = 3
LAYERS, WIDTH = 8, 512
QUARTER = {"stage3_max_live_parameters": LAYERS * WIDTH * WIDTH // 4}
RUNS: dict[str, tuple[int, dict[str, int]]] = {f"stage {stage}": (stage, {}) for stage in range(4)} | {
    "stage 3, a quarter live": (3, QUARTER)
}
# fp32 bytes per parameter, rank and step. A reduce-scatter and an all-gather each move (N - 1) / N of a buffer; stage 3
# may gather twice. The rest is for headers, global checks and versions.
LIMITS = {2: {"stage 3": 6.1, "other": 4.1}, 4: {"stage 3": 9.2, "other": 6.2}}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh())))


def train(name: str, communicator: str) -> tuple[float, torch.Tensor]:
    """Loopback bytes per parameter, rank and step, and the parameters at the end."""
    stage, zero = RUNS[name]
    model = make_model()
    engine, *_ = zeropage.initialize(
        model=model,
        config={
            "train_micro_batch_size_per_gpu": 4,
            "gradient_clipping": 0.5,
            "zero_optimization": {"stage": stage, **zero},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
            "zeropage": {"communicator": communicator},
        },
    )
    generator = torch.Generator().manual_seed(dist.get_rank())
    for step in range(WARMUP_STEPS + STEPS):
        if step == WARMUP_STEPS:
            dist.barrier()
            before = loopback_bytes()
            dist.barrier()
        engine.backward(engine(torch.randn(4, WIDTH, generator=generator)).square().mean())
        engine.step()
    dist.barrier()
    sent = loopback_bytes() - before
    dist.barrier()
    numel = sum(p.numel() for p in model.parameters())
    with zeropage.zero.GatheredParameters(list(model.parameters())), torch.no_grad():
        parameters = torch.cat([p.flatten() for p in model.parameters()])
    return sent / (engine.world_size * STEPS * numel), parameters


def train_all() -> dict[str, tuple[float, bool]]:
    """What one rank saw: bytes of every run over gloo, and whether it ended with the bits that shared memory gives."""
    dist.init_process_group("gloo")
    results = {}
    for name in RUNS:
        bytes_per_numel, over_gloo = train(name, "c10d")
        _, over_shared_memory = train(name, "shared_memory")
        results[name] = (bytes_per_numel, torch.equal(over_gloo, over_shared_memory))
    return results


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_bytes_on_the_wire(world, tmp_path):
    """Catches what sends more than it must: gloo's own reduce-scatter, second gathers, copies of whole pages. And sums
    over gloo whose order is not shared memory's."""
    ranks = run_in_namespace(world, "test_wire_bytes", "train_all", json.dumps({}), tmp_path)
    for rank, results in enumerate(ranks):
        for name, (bytes_per_numel, same_bits) in results.items():
            limit = LIMITS[world]["stage 3" if "stage 3" in name else "other"]
            assert bytes_per_numel <= limit, f"rank {rank} of {world}, {name}"
            assert bytes_per_numel >= 1, (
                f"rank {rank} of {world}, {name}: hardly anything was sent over the counted interface"
            )
            assert same_bits, f"rank {rank} of {world}, {name}: other parameters than over shared memory"
