"""Optimizers as they are published: schedulefree, pytorch_optimizer, timm, torchao. The oracle is the same package in
plain PyTorch."""

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer
import schedulefree
import torch
from test_user_optimizers import assert_close, engine_run, plain_run, settings
from torch import nn
from training import flat_parameters, part_of_batch, small_net, token_batch

import zeropage
from zeropage.testing import run_ranks


def of_timm(module: str, kind: str) -> Any:
    """A class of timm.optim, without the rest of timm, which needs torchvision."""
    if "timm" not in sys.modules:
        spec = importlib.util.find_spec("timm")
        assert spec is not None and spec.origin is not None, "timm is not installed"
        folder = Path(spec.origin).parent
        for name, path in (("timm", folder), ("timm.optim", folder / "optim")):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [str(path)]
    return getattr(importlib.import_module(f"timm.optim.{module}"), kind)


def published(name: str, parameters: Any) -> torch.optim.Optimizer:
    makers = {
        "schedulefree.AdamW": lambda p: schedulefree.AdamWScheduleFree(p, lr=1e-2, eps=1e-4),
        "schedulefree.SGD": lambda p: schedulefree.SGDScheduleFree(p, lr=1e-2),
        "pytorch_optimizer.AdaBelief": lambda p: pytorch_optimizer.AdaBelief(p, lr=1e-3, eps=1e-4),
        "pytorch_optimizer.Adan": lambda p: pytorch_optimizer.Adan(p, lr=1e-3, eps=1e-4),
        "pytorch_optimizer.AdEMAMix": lambda p: pytorch_optimizer.AdEMAMix(p, lr=1e-3, eps=1e-4),
        "pytorch_optimizer.SPAM": lambda p: pytorch_optimizer.SPAM(p, lr=1e-3, eps=1e-4),
        "pytorch_optimizer.MADGRAD": lambda p: pytorch_optimizer.MADGRAD(p, lr=1e-3, eps=1e-4),
        "pytorch_optimizer.Lookahead": lambda p: pytorch_optimizer.Lookahead(
            torch.optim.AdamW(p, lr=1e-3, eps=1e-4), k=2
        ),
        "pytorch_optimizer.QHAdam": lambda p: pytorch_optimizer.QHAdam(p, lr=1e-3, eps=1e-4),
        "timm.MADGRAD": lambda p: of_timm("madgrad", "MADGRAD")(p, lr=1e-3, eps=1e-4, weight_decay=0.01),
        "timm.Adan": lambda p: of_timm("adan", "Adan")(p, lr=1e-3, eps=1e-4),
        "timm.NAdamW": lambda p: of_timm("nadamw", "NAdamW")(p, lr=1e-3, eps=1e-4),
        "timm.Lookahead": lambda p: of_timm("lookahead", "Lookahead")(
            of_timm("nadamw", "NAdamW")(p, lr=1e-3, eps=1e-4), k=2
        ),
        "torch.Adagrad": lambda p: torch.optim.Adagrad(
            p, lr=1e-2, eps=1e-4, maximize=True, initial_accumulator_value=0.1
        ),
    }
    made = makers[name](parameters)
    if name.startswith("schedulefree"):
        made.train()
    return made


PUBLISHED = (
    "schedulefree.AdamW",
    "schedulefree.SGD",
    "pytorch_optimizer.AdaBelief",
    "pytorch_optimizer.Adan",
    "pytorch_optimizer.AdEMAMix",
    "pytorch_optimizer.SPAM",
    "pytorch_optimizer.MADGRAD",
    "pytorch_optimizer.Lookahead",
    "pytorch_optimizer.QHAdam",
    "timm.MADGRAD",
    "timm.Adan",
    "timm.NAdamW",
    "timm.Lookahead",
    "torch.Adagrad",
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_optimizers_train_as_in_plain_pytorch(name):
    """Catches counts in groups that differ from the number of updates, three betas, state made by the constructor, and
    wrappers."""

    def make(parameters: Any) -> torch.optim.Optimizer:
        return published(name, parameters)

    expected = plain_run(make)
    assert not torch.equal(expected, flat_parameters(small_net()))
    for stage in (0, 3):
        for parameters, _ in engine_run(make, stage):
            assert_close(parameters, expected)


@pytest.mark.parametrize("stage", (0, 1, 2, 3))
@pytest.mark.parametrize("bf16", (False, True))
def test_schedulefree_evaluates_with_its_averages(stage, bf16):
    """Catches eval() and train() that do not reach the model: what is evaluated and saved would be the training
    weights."""
    model = small_net()
    sections: dict[str, Any] = {"bf16": {"enabled": True}} if bf16 else {}
    evaluated, plain_evaluated = [], []

    def evaluate(engine: Any, optimizer: Any, step: int) -> None:
        optimizer.eval()
        optimizer.eval()  # twice is once
        evaluated.append(flat_parameters(engine.module))
        optimizer.train()

    def evaluate_plain(model: nn.Module, optimizer: Any, step: int) -> None:
        optimizer.eval()
        plain_evaluated.append(flat_parameters(model))
        optimizer.train()

    def make(parameters: Any) -> torch.optim.Optimizer:
        return published("schedulefree.AdamW", parameters)

    expected = plain_run(make, between=evaluate_plain)
    found = engine_run(make, stage, world=1 if bf16 else 2, between=evaluate, **sections)
    if bf16:
        assert not torch.equal(evaluated[-1], found[0][0])
        difference = (evaluated[-1] - plain_evaluated[-1]).abs()
        assert difference.mean().item() < 2e-3
        return
    assert_close(found[0][0], expected)
    assert_close(evaluated[-1], plain_evaluated[-1])
    assert not torch.allclose(plain_evaluated[-1], expected), "the averages are other values"
    assert not torch.equal(flat_parameters(model), expected)


def test_methods_of_the_engines_optimizer():
    """Catches a loop that calls eval() on what `initialize` returned and gets an AttributeError, and one rank that
    reads a rate alone."""

    def run(rank: int, communicator: Any) -> tuple[bool, float]:
        model = nn.Linear(8, 8)
        engine, optimizer, *_ = zeropage.initialize(
            model=model,
            optimizer=schedulefree.SGDScheduleFree(model.parameters(), lr=0.1),
            config={**settings(3), "train_batch_size": 2},
        )
        optimizer.train()
        for _ in range(3):
            engine.backward(engine(torch.ones(1, 8)).square().sum())
            engine.step()
        if rank == 0:
            assert optimizer.param_groups[0]["k"] == 3
        training = flat_parameters(engine.module)
        optimizer.eval()
        return torch.equal(training, flat_parameters(engine.module)), hasattr(optimizer, "no_such_method")

    torch.manual_seed(0)
    assert run_ranks(2, run) == [(False, False)] * 2


def test_three_betas_do_not_end_initialize():
    """Catches "too many values to unpack" for optimizers that have more betas than Adam."""
    model = nn.Linear(8, 8)
    optimizer = pytorch_optimizer.Adan(model.parameters())
    assert len(optimizer.param_groups[0]["betas"]) == 3
    zeropage.initialize(model=model, optimizer=optimizer, config={**settings(0), "train_batch_size": 1})
    assert len(optimizer.param_groups[0]["betas"]) == 3


def test_eight_bit_adamw_of_torchao():
    """Catches a rate that is not a tensor any more, so that the first step fails in the middle."""
    from torchao.optim import AdamW8bit

    def make(parameters: Any) -> torch.optim.Optimizer:
        return AdamW8bit(parameters, lr=1e-3, eps=1e-4)

    with torch.compiler.set_stance("force_eager"):
        expected = plain_run(make)
        for parameters, _ in engine_run(make, 2):
            assert (parameters - expected).abs().mean().item() < 2e-5


@pytest.mark.parametrize("name", ("pytorch_optimizer.Lookahead", "timm.MADGRAD", "pytorch_optimizer.SPAM"))
def test_checkpoints_have_all_of_its_state(name, tmp_path):
    """Catches state of a wrapped optimizer, and values that belong to no parameter, that a checkpoint leaves out."""

    def run(rank: int, communicator: Any, steps: range, save: bool, load: bool) -> torch.Tensor:
        model = small_net()
        engine = zeropage.initialize(model=model, optimizer=published(name, model.parameters()), config=settings(2))[0]
        if load:
            engine.load_checkpoint(tmp_path)
        for step in steps:
            engine.backward(engine(*part_of_batch(token_batch(step), 1, rank)))
            engine.step()
        if save:
            engine.save_checkpoint(tmp_path)
        counts.append(engine.optimizer.client.state.get("total_step"))
        return flat_parameters(engine.module)

    counts: list[int | None] = []
    straight = run_ranks(1, lambda rank, communicator: run(rank, communicator, range(5), False, False))[0]
    run_ranks(1, lambda rank, communicator: run(rank, communicator, range(3), True, False))
    assert torch.equal(
        run_ranks(1, lambda rank, communicator: run(rank, communicator, range(3, 5), False, True))[0], straight
    )
    assert counts == ([5, 3, 5] if "SPAM" in name else [None] * 3)
