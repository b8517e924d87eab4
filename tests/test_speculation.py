"""Updates that begin before the verdict of their step: the bits of those that wait, whatever the verdict says."""

import random
from typing import Any

import pytest
import torch
from torch import nn
from training import config_of, flat_parameters

import zeropage
from zeropage.testing import run_ranks

STEPS = 1000
PRECISIONS = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True, "loss_scale": 16}},
}


class Tiny(nn.Module):
    """Two layers of 64 x 64, of which each of two ranks has a half; quick enough for thousands of steps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        # Noise to be predicted, so that gradients do not vanish.
        found = self.layers(inputs.to(self.layers[0].weight.dtype)).float()
        return (found - 10 * inputs.roll(1, dims=0)).square().mean()


def train(stage: int, precision: str, log_bytes: int) -> tuple[torch.Tensor, list[tuple[bool, float]], dict[str, int]]:
    """1000 steps of two ranks, of which some overflow on one of them and some are clipped, at random. Parameters, what came of each
    step, and how many began ahead on rank 0 and were undone."""
    zero = {"offload_optimizer": {"device": "cpu"}, "stage3_max_live_parameters": 5000}
    own = {"page_numel": 1, "speculation_bytes": log_bytes}
    settings = config_of(stage, clipping=5.0, zero_optimization=zero, zeropage=own, **PRECISIONS[precision])
    settings["optimizer"]["params"]["lr"] = 1e-3
    base = Tiny()

    def run(rank: int, communicator: Any) -> tuple[torch.Tensor, list[tuple[bool, float]], dict[str, int]]:
        model = Tiny()
        model.load_state_dict(base.state_dict())
        engine, *_ = zeropage.initialize(model=model, config=settings)
        chance = random.Random(7)
        poisoned = False

        def poison(gradient: torch.Tensor) -> torch.Tensor:
            if poisoned:
                gradient = gradient.clone()
                gradient[-1, -1] = float("nan")
            return gradient

        model.layers[1].weight.register_hook(poison)
        steps, counts = [], {"ahead": 0, "undone": 0}
        for step in range(STEPS):
            # The same draws on all ranks. Large factors clip, and some clip only with what the other rank adds. A NaN is in the gradients
            # of rank 1 alone.
            factor = 10.0 ** chance.uniform(-0.7, 0.7)
            bad_rank = chance.choice([0, 1, None, None, None, None]) if precision != "fp32" else None
            poisoned = bad_rank == rank
            inputs = torch.randn(4, 64, generator=torch.Generator().manual_seed(2 * step + rank))
            engine.backward(engine(inputs) * factor)
            engine.step()
            last = engine._core.last_step
            assert last.applied == (bad_rank is None)
            counts["ahead"] += last.pages_ahead > 0
            counts["undone"] += last.undone
            steps.append((last.applied, last.gradient_norm if last.applied else 0.0))
        return flat_parameters(engine.module), steps, counts

    outcomes = run_ranks(2, run)
    assert torch.equal(outcomes[0][0], outcomes[1][0]) and outcomes[0][1] == outcomes[1][1]
    return outcomes[0]


@pytest.mark.parametrize(("stage", "precision"), [(1, "fp32"), (3, "bf16"), (2, "fp16")])
def test_a_thousand_steps_have_the_same_bits(stage, precision):
    """Catches an update that is not undone exactly, is done twice, or shows before its verdict."""
    waited, steps, none = train(stage, precision, 0)
    assert none == {"ahead": 0, "undone": 0}
    log_bytes = 30_000 if precision == "fp32" else 1 << 20  # for one of the two pages, and for both
    found, found_steps, counts = train(stage, precision, log_bytes)
    assert torch.equal(found, waited) and found_steps == steps
    assert counts["ahead"] > 300 and counts["undone"] > 50, counts


def test_the_log_is_in_the_memory_table():
    """Catches bytes that nobody counts."""
    zero = {"offload_optimizer": {"device": "cpu"}}
    for log_bytes in (0, 1 << 20):
        settings = config_of(1, zero_optimization=zero, zeropage={"speculation_bytes": log_bytes}, bf16={"enabled": True})
        engine, *_ = zeropage.initialize(model=Tiny(), config=settings)
        assert engine.memory_report().host[0]["buffers"] == log_bytes
