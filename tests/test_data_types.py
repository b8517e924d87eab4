"""Types of parameters and buffers: what the precision section casts, what keeps its type, and what the model or the
configuration asks for."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from training import config_of, flat_parameters

import zeropage
from zeropage import errors
from zeropage.testing import run_ranks

BF16: dict[str, Any] = {"bf16": {"enabled": True}}


class Rotary(nn.Module):
    """A table of positions, as of rotary embeddings, and a weight."""

    def __init__(self):
        super().__init__()
        self.register_buffer("inverse", 10000.0 ** -(torch.arange(0, 64, 2) / 64), persistent=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.weight = nn.Parameter(torch.ones(32))

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return torch.cos(positions[:, None] * self.inverse)

    def loss(self, positions: torch.Tensor) -> torch.Tensor:
        return (self(positions).to(self.weight.dtype) * self.weight).sum()


def initialize(model: nn.Module, stage: int = 0, world: int = 1, **sections: Any) -> Any:
    return zeropage.initialize(model=model, config=config_of(stage, batch=world, clipping=0.0, **sections))[0]


@pytest.mark.parametrize("precision", ("bf16", "fp16"))
def test_buffers_keep_their_type(precision):
    """Catches a table of positions that is rounded to 16 bit: its cosines are off by 0.7 at position 4096."""
    positions = torch.arange(4000, 4100, dtype=torch.float32)
    expected = Rotary()(positions)
    model = Rotary()
    engine = initialize(model, **dict[str, Any]({precision: {"enabled": True}}))
    assert model.weight.dtype in (torch.bfloat16, torch.float16)
    assert model.inverse.dtype == torch.float32 and model.count.dtype == torch.long
    assert torch.equal(engine(positions), expected)


def test_buffers_are_cast_when_asked_for():
    """Catches a data_types.buffer_dtype without effect."""
    model = Rotary()
    initialize(model, **BF16, data_types={"buffer_dtype": "bf16"})
    assert model.inverse.dtype == torch.bfloat16 and model.count.dtype == torch.long
    model = Rotary()
    initialize(model, data_types={"buffer_dtype": "fp16"})
    assert model.inverse.dtype == torch.float16 and model.weight.dtype == torch.float32


class Routed(nn.Module):
    """A body, and a router that depends on small differences."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(32, 32)
        self.router = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x.to(self.body.weight.dtype))
        return self.router(h.to(self.router.weight.dtype)).float().square().mean()


class Declaring(Routed):
    _keep_in_fp32_modules = ["router"]


def batch(step: int, rank: int, size: int = 8) -> torch.Tensor:
    return torch.randn(size, 32, generator=torch.Generator().manual_seed(10 * step + rank))


def trained(model: nn.Module, stage: int, world: int, steps: int, **sections: Any) -> list[nn.Module]:
    def run(rank: int, communicator: Any) -> dict[str, Any]:
        engine = initialize(copy.deepcopy(model), stage, world, **sections)
        for step in range(steps):
            engine.backward(engine(batch(step, rank)))
            engine.step()
        with zeropage.zero.GatheredParameters(list(engine.module.parameters())):
            parameters = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
        memory = engine.memory_report()
        return {"parameters": parameters, "counted": memory.ranks[rank], "formula": memory.formula}

    return run_ranks(world, run)


@pytest.mark.parametrize("stage", (0, 1, 2, 3))
@pytest.mark.parametrize("way", ("config", "model"))
def test_modules_that_stay_fp32(way, stage):
    """Catches a router whose values, gradients or reductions are rounded to bf16 in between, at any stage."""
    torch.manual_seed(0)
    model = Declaring() if way == "model" else Routed()
    with torch.no_grad():
        model.router.weight.add_(1e-5)
    sections = {**BF16, "zeropage": {"page_numel": 64}}
    if way == "config":
        sections["data_types"] = {"keep_in_fp32_modules": ["router"]}
    for outcome in trained(model, stage, 2, 3, **sections):
        types = {name: p.dtype for name, p in outcome["parameters"].items()}
        assert (
            types["body.weight"] == torch.bfloat16 and types["router.weight"] == types["router.bias"] == torch.float32
        )
        assert outcome["counted"]["optimizer"] >= outcome["formula"].optimizer

    # Only the router, on the body's output: the oracle is plain PyTorch with a body in bf16 and fp32 masters of it.
    plain = copy.deepcopy(model)
    masters = [p.detach().clone().requires_grad_() for p in plain.body.parameters()]
    plain.body.bfloat16()
    optimizer = torch.optim.AdamW([*masters, *plain.router.parameters()], lr=1e-2, weight_decay=0.01)
    for step in range(3):
        optimizer.zero_grad()
        plain.body.zero_grad()
        for rank in range(2):
            (plain(batch(step, rank)) / 2).backward()
        for master, p in zip(masters, plain.body.parameters(), strict=True):
            master.grad = p.grad.float()
        optimizer.step()
        with torch.no_grad():
            for master, p in zip(masters, plain.body.parameters(), strict=True):
                p.copy_(master)
    difference = (outcome["parameters"]["router.weight"] - plain.router.weight).abs()
    assert difference.max().item() < 2e-3 and difference.mean().item() < 2e-4


@pytest.mark.parametrize("stage", (0, 2, 3))
def test_small_steps_of_a_module_in_fp32(stage):
    """Catches a module that is reported as fp32 but changes in steps of bf16: 1e-4 added to 1 is lost there."""

    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Parameter(torch.ones(512))
            self.body = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.wide.sum() + self.body(x.to(self.body.weight.dtype)).float().sum()

    model = Offset()
    config = {**config_of(stage, batch=2, clipping=0.0, **BF16), "optimizer": {"type": "SGD", "params": {"lr": 1e-4}}}
    config["data_types"] = {"keep_in_fp32_modules": ["wide"]}

    def run(rank: int, communicator: Any) -> torch.Tensor:
        engine = zeropage.initialize(model=copy.deepcopy(model), config=config)[0]
        for _ in range(3):
            engine.backward(engine(torch.ones(1, 4)))
            engine.step()
        with zeropage.zero.GatheredParameters([engine.module.wide]):
            return engine.module.wide.detach().clone()

    for wide in run_ranks(2, run):
        assert wide.dtype == torch.float32 and torch.allclose(wide, torch.full((512,), 1 - 3e-4), atol=1e-7)


def test_checkpoints_of_mixed_types(tmp_path):
    """Catches fp32 modules that a checkpoint saves as a stale master, or rounds."""

    def run(rank: int, communicator: Any, steps: range, folder: Any, load: bool) -> torch.Tensor:
        torch.manual_seed(0)
        engine = initialize(Declaring(), 2, **BF16)
        if load:
            engine.load_checkpoint(folder)
        for step in steps:
            engine.backward(engine(batch(step, 0)))
            engine.step()
        if not load:
            engine.save_checkpoint(folder)
        return flat_parameters(engine.module)

    straight = run_ranks(1, lambda rank, communicator: run(rank, communicator, range(4), tmp_path / "straight", False))[
        0
    ]
    run_ranks(1, lambda rank, communicator: run(rank, communicator, range(2), tmp_path / "half", False))
    assert torch.equal(
        run_ranks(1, lambda rank, communicator: run(rank, communicator, range(2, 4), tmp_path / "half", True))[0],
        straight,
    )


def test_names_that_match_nothing():
    """Catches a module that is misspelt in keep_in_fp32_modules and trains in bf16."""
    with pytest.raises(errors.ConfigError, match="keep_in_fp32_modules.*ruoter"):
        initialize(Routed(), **BF16, data_types={"keep_in_fp32_modules": ["ruoter"]})


def test_nothing_is_kept_when_the_list_is_empty():
    """Catches a model's declaration that the configuration cannot override."""
    model = Declaring()
    initialize(model, **BF16, data_types={"keep_in_fp32_modules": []})
    assert model.router.weight.dtype == torch.bfloat16


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 16)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (
            self.norm(self.linear(x.to(self.linear.weight.dtype))).float().square().mean()
            * self.norm.weight.float().sum()
        )


@pytest.mark.parametrize(
    "cast, sections",
    ((False, BF16), (True, BF16), (True, {}), (False, {**BF16, "data_types": {"keep_in_fp32_modules": []}})),
)
def test_batch_norm_in_bf16(cast, sections):
    """Catches buffers and parameters of a batch norm whose types do not match, in each way of making a model bf16."""
    model = Normed().bfloat16() if cast else Normed()
    engine = initialize(model, **sections)
    before = model.norm.running_mean.float().clone()
    engine.backward(engine(batch(0, 0)))
    engine.step()
    model.eval()
    engine(batch(1, 0))
    assert not torch.equal(model.norm.running_mean.float(), before)


@pytest.mark.parametrize("stage", (0, 3))
def test_a_bf16_model_without_a_precision_section_stays_bf16(stage):
    """Catches a model that silently takes twice the memory it was made for; and one that trains without fp32
    masters."""
    torch.manual_seed(0)
    model = Routed().bfloat16()
    model.router.float()
    for outcome in trained(model, stage, 2, 3):
        types = {name: p.dtype for name, p in outcome["parameters"].items()}
        assert types["body.weight"] == torch.bfloat16 and types["router.weight"] == torch.float32
    explicit = trained(model, stage, 2, 3, **BF16, data_types={"keep_in_fp32_modules": ["router"]})
    for name, p in explicit[0]["parameters"].items():
        assert torch.equal(p, outcome["parameters"][name]), name


def test_param_dtype_names_the_precision():
    """Catches data_types.param_dtype without effect where no precision section is enabled."""
    model = Routed()
    initialize(model, data_types={"param_dtype": "bf16"})
    assert model.body.weight.dtype == torch.bfloat16
    model = Routed().bfloat16()
    initialize(model, data_types={"param_dtype": "fp32"})
    assert model.body.weight.dtype == torch.float32


@pytest.mark.parametrize("stage", (0, 3))
@pytest.mark.parametrize("named", (True, False))
def test_types_of_parameters_that_are_added(named, stage):
    """Catches a head that is added to a model of mixed types and gets a type which neither the model nor the
    configuration asks for."""
    model = Routed() if named else Routed().bfloat16()
    sections = {**BF16, "data_types": {"keep_in_fp32_modules": ["router"]}} if named else {}

    def run(rank: int, communicator: Any) -> dict[str, torch.dtype]:
        engine = initialize(copy.deepcopy(model), stage, 2, **sections)
        head = nn.ModuleDict(
            {"body": nn.Linear(32, 32, dtype=None if named else torch.bfloat16), "router": nn.Linear(32, 4)}
        )
        engine.module.add_module("head", head)
        engine.add_parameters()
        for step in range(2):
            hidden = head["body"](engine.module.body(batch(step, rank).bfloat16()))
            engine.backward(engine(batch(step, rank)) + head["router"](hidden.float()).square().mean())
            engine.step()
        return {name: p.dtype for name, p in engine.module.named_parameters()}

    for types in run_ranks(2, run):
        assert types["head.body.weight"] == torch.bfloat16 and types["head.router.weight"] == torch.float32
