"""Published optimizers, as Accelerate passes them on: trained as by one process, or refused by name. The oracle is the
same class in one process.

Some of them by turns (ZEROPAGE_SEED says which); all with

    ZEROPAGE_EVERY_OPTIMIZER=1 .venv/bin/python -m pytest -q tests/test_every_optimizer.py
"""

import copy
import inspect
import os
import random
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_optimizer
import torch
import transformers
from test_optimizer_packages import of_timm
from torch import nn
from training import flat_parameters

import zeropage
from zeropage import optimizer_sees
from zeropage.errors import ConfigError
from zeropage.testing import run_ranks

STEPS = 4

# They cannot make a step in plain PyTorch with this test's loop: they need a closure, Hessians, the model, or packages
# that are not there; or they compile for a minute.
_NOT_PLAIN = {
    "adahessian",
    "adalomo",
    "adammini",
    "alig",
    "bsam",
    "demo",
    "lbfgs",
    "lomo",
    "ranger21",
    "sophiah",
    "spectralsphere",
}
_NOT_PLAIN |= {"adago", "adamuon", "distributedmuon", "muon", "muonclip", "normuon", "lorarite", "kron", "dash", "asgd"}
_RANDOM = {"magma"}  # its step draws numbers, which ranks as threads draw from one generator

Make = Callable[[Any], torch.optim.Optimizer]


def _of_timm(module: str, kind: str, parameters: Any) -> torch.optim.Optimizer:
    return of_timm(module, kind)(parameters, lr=1e-3)


def classes() -> dict[str, Make]:
    found: dict[str, Make] = {
        f"pytorch_optimizer.{name}": _maker(name)
        for name in pytorch_optimizer.get_supported_optimizers()
        if name not in _NOT_PLAIN | _RANDOM
    }
    for module, kind in (
        ("lamb", "Lamb"),
        ("lars", "Lars"),
        ("adafactor", "Adafactor"),
        ("adafactor_bv", "AdafactorBigVision"),
        ("adopt", "Adopt"),
        ("nvnovograd", "NvNovoGrad"),
        ("laprop", "LaProp"),
        ("mars", "Mars"),
    ):
        found[f"timm.{kind}"] = partial(_of_timm, module, kind)
    found["torch.Adafactor"] = partial(torch.optim.Adafactor, lr=1e-3)
    found["transformers.Adafactor"] = lambda p: transformers.Adafactor(p, lr=1e-3, relative_step=False)
    return found


def _maker(name: str) -> Make:
    kind = pytorch_optimizer.load_optimizer(name)

    def make(parameters: Any) -> torch.optim.Optimizer:
        made = kind(parameters, **({"lr": 1e-3} if "lr" in inspect.signature(kind.__init__).parameters else {}))
        if hasattr(made, "train"):
            made.train()
        return made

    return make


def sample() -> list[str]:
    names = sorted(classes())
    if os.environ.get("ZEROPAGE_EVERY_OPTIMIZER"):
        return names
    return sorted(random.Random(int(os.environ.get("ZEROPAGE_SEED", "0"))).sample(names, 10))


class Small(nn.Module):
    """Parameters of one and two dimensions, tall, wide and square; the first in memory is cut by the border of two
    shards."""

    def __init__(self):
        super().__init__()
        self.embedding, self.wide, self.norm = nn.Embedding(20, 12), nn.Linear(12, 16), nn.LayerNorm(16)
        self.tall, self.out = nn.Linear(16, 8, bias=False), nn.Linear(8, 20)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.tall(self.norm(torch.tanh(self.wide(self.embedding(tokens)))))
        return nn.functional.cross_entropy(self.out(h), (tokens * 7 + 1) % 20)


def tokens_of(step: int, rank: int) -> torch.Tensor:
    return torch.randint(0, 20, (16,), generator=torch.Generator().manual_seed(2 * step + rank))


def plain_run(make: Make, model: nn.Module) -> torch.Tensor:
    model = copy.deepcopy(model)
    torch.manual_seed(0)
    optimizer = make(model.parameters())
    for step in range(STEPS):
        model.zero_grad()
        for rank in range(2):
            (model(tokens_of(step, rank)) / 2).backward()
        optimizer.step()
    return flat_parameters(model)


def engine_run(make: Make, model: nn.Module, stage: int) -> torch.Tensor | str:
    """The parameters, or the error of initialize."""
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    config = {
        "train_batch_size": 2,
        "zero_optimization": zero,
        "zeropage": {"timeout_ms": 20_000},
        "zero_allow_untested_optimizer": True,
    }

    def run(rank: int, communicator: Any) -> torch.Tensor | str:
        own = copy.deepcopy(model)
        try:
            engine = zeropage.initialize(model=own, optimizer=make(own.parameters()), config=config)[0]
        except ConfigError as error:
            return str(error)
        for step in range(STEPS):
            engine.backward(engine(tokens_of(step, rank)))
            engine.step()
        return flat_parameters(engine.module)

    torch.manual_seed(0)
    return run_ranks(2, run)[0]


@pytest.mark.parametrize("name", sample())
def test_it_trains_as_in_one_process_or_is_refused(name):
    """Catches an optimizer that silently trains another model, because it got parts of parameters or of the model."""
    make = classes()[name]
    torch.manual_seed(0)
    model = Small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = plain_run(make, model)
        for stage in range(4):
            found = engine_run(make, model, stage)
            if isinstance(found, str):
                assert stage > 0 and type(make(model.parameters())).__name__ in found and "optimizer_sees" in found
            else:
                assert (found - expected).abs().max().item() < 2e-5, f"stage {stage}"


def test_a_trial_leaves_the_compiler_as_it_was():
    """Catches ranks as threads whose trials overlap, after which nothing is compiled any more in this process."""
    import torch._dynamo.eval_frame as eval_frame

    before = eval_frame._stance

    def run(rank: int, communicator: object) -> None:
        for _ in range(20):
            optimizer_sees.sums_over_model(torch.optim.Adagrad([torch.nn.Parameter(torch.ones(4, 4))]))

    run_ranks(2, run)
    assert eval_frame._stance == before
