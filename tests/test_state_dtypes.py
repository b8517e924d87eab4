"""Moments in bf16 and int8: close to torch.optim, the same bits whichever ranks update, the bytes they should take, and
checkpoints."""

import copy
from typing import Any

import pytest
import torch
from test_optimizers import STEPS, Vector, gradient_of, torch_result
from training import config_of, interrupted_run, small_net, train_ranks

import zeropage
from zeropage.testing import run_ranks

BF16 = {"bf16": {"enabled": True}}
NUMEL = 10_007
# Largest and mean difference allowed to torch.optim with fp32 states after 100 steps, which move parameters by up to 1.
# Measured: see docs/offload.md.
BOUNDS = {"bf16": (0.01, 0.001), "int8": (0.15, 0.015)}
TOLD = {
    "AdamW": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1}},
    "Adagrad": {"type": "Adagrad", "params": {"lr": 1e-1, "weight_decay": 0.1, "lr_decay": 0.01}},
    "SGD with momentum": {
        "type": "SGD",
        "params": {"lr": 1e-3, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1},
    },
}


def settings(stage: int, dtype: str, offload: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    own = {"page_numel": 4096, "optimizer_state_dtype": dtype}
    return config_of(stage, zeropage=own, zero_optimization=copy.deepcopy(offload or {}), **copy.deepcopy(sections))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", TOLD)
def test_hundred_steps_stay_near_torch(name, dtype):
    """Catches moments that do not change because of rounding, and small ones that become 0, so that parameters change
    too much."""
    config = {**settings(0, dtype, batch=1, clipping=0.0), "optimizer": TOLD[name]}
    engine = zeropage.initialize(model=Vector(), config=config)[0]
    for step in range(STEPS):
        engine.backward(engine(gradient_of(step)))
        engine.step()
    difference = (engine.module.p.detach() - torch_result(name)).abs()
    largest, mean = BOUNDS[dtype]
    assert difference.max().item() < largest and difference.mean().item() < mean
    assert difference.max().item() > 0, "the moments were fp32"


@pytest.mark.parametrize("optimizer", ["Lion", "Lamb"])
def test_the_others_take_them_too(optimizer):
    """Catches an update that reads packed moments as fp32."""
    finals = {}
    for dtype in ("fp32", "bf16"):
        config = settings(1, dtype, **BF16)
        config["optimizer"] = {"type": optimizer, "params": {"lr": 1e-3}}
        finals[dtype] = train_ranks(small_net(), 2, config, 6)[0].parameters
    assert 0 < (finals["bf16"] - finals["fp32"]).abs().mean().item() < 1e-3


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("stage", (1, 2, 3))
def test_bits_do_not_depend_on_who_updates(stage, dtype, tmp_path):
    """Catches states that are unpacked from the wrong place on the host or on a drive."""

    def run(offload: dict[str, Any]) -> torch.Tensor:
        return train_ranks(small_net(), 2, settings(stage, dtype, offload, **BF16), 8)[0].parameters

    expected = run({})
    assert torch.equal(run({"offload_optimizer": {"device": "cpu", "ratio": 0.5}}), expected)
    assert torch.equal(run({"offload_optimizer": {"device": "nvme", "nvme_path": str(tmp_path)}}), expected)
    if dtype == "bf16" and stage > 1:
        other = train_ranks(small_net(), 2, settings(5 - stage, dtype, **BF16), 8)[0].parameters
        assert torch.equal(other, expected), "bf16 does not depend on how parameters are cut into shards"


@pytest.mark.parametrize(("dtype", "per_moment"), [("fp32", 4), ("bf16", 2), ("int8", 1 + 1 / 256)])
def test_they_take_their_bytes(dtype, per_moment):
    """Catches moments that are kept in fp32 nevertheless, and a formula that counts them so."""
    numel = 1 << 18
    model = torch.nn.Linear(512, 512, bias=False)
    for sections, masters in ((BF16, 4), ({}, 0)):
        engine = zeropage.initialize(model=copy.deepcopy(model), config=settings(2, dtype, batch=1, **sections))[0]
        memory = engine.memory_report()
        assert memory.formula.optimizer == (masters + 2 * per_moment) * numel
        assert memory.formula.optimizer <= memory.ranks[0]["optimizer"] <= memory.formula.optimizer + 256


def test_the_key_of_deepspeed_is_the_same():
    """Catches bf16_optimizer_states without effect."""
    told = settings(1, "bf16", **BF16)
    other = settings(1, "bf16", bf16={"enabled": True, "bf16_optimizer_states": True})
    del other["zeropage"]["optimizer_state_dtype"]
    found = [train_ranks(small_net(), 2, config, 4)[0].parameters for config in (told, other)]
    assert torch.equal(*found)


@pytest.mark.parametrize(("saved", "loaded"), [("bf16", "bf16"), ("int8", "int8"), ("int8", "fp32"), ("fp32", "int8")])
@pytest.mark.parametrize("stage", (0, 2))
def test_checkpoints_hold_them_as_fp32(stage, saved, loaded, tmp_path):
    """Catches states that change by being saved and loaded in their own type, and types that do not load into
    another."""

    model = small_net()  # not by the ranks, which share one generator of random numbers

    def run(rank: int, dtype: str, resume: bool) -> torch.Tensor:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=settings(stage, dtype, **BF16))
        return interrupted_run(engine, rank, tmp_path, resume)

    through = run_ranks(2, lambda rank, communicator: run(rank, saved, False))[0]
    again = run_ranks(2, lambda rank, communicator: run(rank, loaded, True))[0]
    if saved == loaded:
        assert torch.equal(through, again)
    else:
        assert (through - again).abs().mean().item() < 1e-3


def test_a_parameter_without_gradient_keeps_its_moments():
    """Catches a block of moments that two parameters share."""

    class Halves(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Parameter(torch.ones(100)), torch.nn.Parameter(torch.ones(100))

        def forward(self, scale_a: float, scale_b: float) -> torch.Tensor:
            return scale_a * self.a.sum() + (scale_b * self.b.sum() if scale_b else 0.0)

    def train(steps: list[tuple[float, float]]) -> torch.Tensor:
        engine = zeropage.initialize(model=Halves(), config=settings(1, "int8", batch=1, clipping=0.0))[0]
        for scales in steps:
            engine.backward(engine(*scales))
            engine.step()
        return engine.module.b.detach().clone()

    assert torch.equal(train([(1.0, 1e-3), (1e6, 0.0), (1.0, 1e-3)]), train([(1.0, 1e-3), (1.0, 1e-3)]))


def test_training_goes_on_with_them():
    """Catches a loss that does not fall as with fp32 states: 30 steps of the small net, in which it falls from 60 to
    1."""
    losses = {}
    for dtype in ("fp32", *BOUNDS):
        config = settings(2, dtype, **BF16)
        config["optimizer"]["params"]["lr"] = 1e-3
        outcomes = train_ranks(small_net(), 2, config, 30)
        losses[dtype] = sum(sum(outcome.losses[-10:]) for outcome in outcomes) / 20
    for dtype in BOUNDS:
        assert losses[dtype] == pytest.approx(losses["fp32"], rel=0.06), losses
