"""Checkpoints of optimizer objects between C++ programs and Python: the program is
zeropage/cpp/optimizer_object_main.cc, and what both train in turns is what plain PyTorch trains in one process."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zeropage
from zeropage.errors import CheckpointError, UsageError
from zeropage.testing import run_ranks

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = Path(os.environ.get("ZEROPAGE_COMMAND", ROOT / "build" / "dev" / "zeropage")).parent / "optimizer_object"

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1),
    "Amsgrad": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.1, initial_accumulator_value=0.5),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.5),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.25, momentum=0.5),
}
STAGES = dict(zip([*OPTIMIZERS, "Muon"], (0, 1, 2, 3, 2, 3, 1), strict=True))
# The configuration names Muon; the program has the same section.
MUON = {
    "type": "Muon",
    "params": {
        "lr": 0.02,
        "adam_lr": 0.01,
        "weight_decay": 0.1,
        "ns_method": "standard",
        "ns_dtype": "fp32",
        "eps": 1e-4,
    },
}


class PlainMuon:
    """Its two halves as two optimizers; torch.optim.Muon computes only in bf16, so the matrices are updated by hand."""

    def __init__(self, parameters: Any):
        parameters = list(parameters)
        self.matrices = {p: torch.zeros_like(p) for p in parameters if p.dim() == 2}
        others = [p for p in parameters if p.dim() != 2]
        self.adam = torch.optim.AdamW(others, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-4)

    def zero_grad(self) -> None:
        self.adam.zero_grad()
        for p in self.matrices:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        self.adam.step()
        for p, momentum in self.matrices.items():
            momentum.lerp_(p.grad, 0.05)
            u = p.grad.lerp(momentum, 0.95).double()
            x = (u.T if u.shape[0] > u.shape[1] else u) / u.norm()
            for _ in range(5):
                a = x @ x.T
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            x = x.T if u.shape[0] > u.shape[1] else x
            p.mul_(1 - 0.02 * 0.1).sub_(x.float() * (0.02 * max(1, u.shape[0] / u.shape[1]) ** 0.5))


def make_model() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    with torch.no_grad():
        for index, p in enumerate(model.parameters()):
            start = -0.5 + 0.125 * index
            p.copy_(torch.linspace(start, start + 1.0, p.numel()).view_as(p))
    return model


def batch_of(step: int, rank: int) -> torch.Tensor:
    return torch.cos(torch.arange(10.0).view(2, 5) * (step + 1) + 3 * rank)


def loss_of(model: Any, batch: torch.Tensor) -> torch.Tensor:
    return (model(batch) - 0.25).square().mean()


def plain(kind: str, steps: int) -> list[torch.Tensor]:
    model = make_model()
    optimizer: Any = PlainMuon(model.parameters()) if kind == "Muon" else OPTIMIZERS[kind](model.parameters())
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, torch.cat([batch_of(step, 0), batch_of(step, 1)])).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def by_program(kind: str, stage: int, folder: Path, steps: int) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [str(word) for word in (PROGRAM, kind, stage, folder, steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def engine_of(kind: str, stage: int, make: Callable[[Any], torch.optim.Optimizer] | None = None) -> Any:
    model = make_model()
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    if kind == "Muon":
        return zeropage.initialize(model=model, config={**config, "optimizer": MUON})[0]
    optimizer = (make or OPTIMIZERS[kind])(model.parameters())
    return zeropage.initialize(model=model, optimizer=optimizer, config=config)[0]


def by_python(kind: str, stage: int, folder: Path, steps: int) -> list[torch.Tensor]:
    """Two ranks."""

    def run(rank: int, _: Any) -> list[torch.Tensor]:
        engine = engine_of(kind, stage)
        if folder.exists():
            assert engine.load_checkpoint(folder)[0] is not None
        while engine.global_steps < steps:
            engine.backward(loss_of(engine, batch_of(engine.global_steps, rank)))
            engine.step()
        engine.save_checkpoint(folder)
        return [p.detach().clone() for p in engine.module.parameters()]

    return run_ranks(2, run)[0]


@pytest.mark.parametrize("cpp_begins", [True, False])
@pytest.mark.parametrize("kind", STAGES)
def test_objects_continue_in_the_other_language(tmp_path, kind, cpp_begins):
    """Catches moments, counts of steps and hyperparameters that one language saves and the other does not find: it
    would silently begin with empty ones."""
    folder, stage = tmp_path / "saved", STAGES[kind]
    steps = 0
    for cpp in (cpp_begins, not cpp_begins, cpp_begins, not cpp_begins):
        steps += 2
        if cpp:
            by_program(kind, 3 - stage, folder, steps)
        else:
            by_python(kind, stage, folder, steps)
    for found, expected in zip(by_python(kind, stage, folder, steps), plain(kind, steps), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


class Adam(torch.optim.Optimizer):
    """Another package's class of the same name, with different moments."""

    def __init__(self, parameters: Any):
        super().__init__(parameters, {"lr": 0.01})

    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.sub_(mean.lerp_(p.grad, 0.5), alpha=0.01)


def test_what_another_class_of_the_same_name_has_saved_is_refused(tmp_path):
    """Catches a class that does not find its state in a checkpoint, in either direction, and silently starts with empty
    state."""

    def train(engine: Any, folder: Path) -> None:
        engine.backward(loss_of(engine, batch_of(0, 0)))
        engine.step()
        engine.save_checkpoint(folder)

    ours, other = engine_of("Adam", 2), engine_of("Adam", 2, Adam)
    train(ours, tmp_path / "ours")
    train(other, tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"'0\.weight' \(exp_avg\).*another class of the same name"):
        other.load_checkpoint(tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"'0\.weight'.*more state than the engine's own update"):
        ours.load_checkpoint(tmp_path / "other")
    for engine, folder in ((other, "ours"), (ours, "other")):
        assert engine.load_checkpoint(tmp_path / folder, load_optimizer_states=False)[0] is not None


@pytest.mark.parametrize("option", ["amsgrad", "maximize"])
def test_options_that_the_engines_update_does_not_have(tmp_path, option):
    """Catches a resumed run that drops amsgrad or maximize, and one that switches them on without being asked."""
    special = engine_of("Adam", 2, lambda parameters: torch.optim.Adam(parameters, lr=0.01, **{option: True}))
    usual = engine_of("Adam", 2)
    for name, engine in (("special", special), ("usual", usual)):
        for step in range(2):
            engine.backward(loss_of(engine, batch_of(step, 0)))
            engine.step()
        engine.save_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{option}=True, which the engine's own update does not have"):
        usual.load_checkpoint(tmp_path / "special")
    with pytest.raises(UsageError, match=f"{option}=True, which the engine's own update does not have"):
        usual.optimizer.load_state_dict(special.optimizer.state_dict())
    special.load_checkpoint(tmp_path / "usual")
    for engine in (special, usual):
        engine.backward(loss_of(engine, batch_of(2, 0)))
        engine.step()
    for one, other in zip(special.module.parameters(), usual.module.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    usual.optimizer.param_groups[0][option] = True
    usual.backward(loss_of(usual, batch_of(2, 0)))
    with pytest.raises(UsageError, match=f"{option}=True, which the engine's own update does not have"):
        usual.step()


@pytest.mark.parametrize("option", ["amsgrad", "maximize"])
def test_groups_that_do_not_have_an_option(tmp_path, option):
    """Catches an object whose amsgrad or maximize stays on where the engine has saved, whose groups lack them."""
    section = {"type": "Adam", "params": {"lr": 0.01, "adam_w_mode": False}}
    config = {"train_micro_batch_size_per_gpu": 2, "optimizer": section}
    saving = zeropage.initialize(model=make_model(), config=config)[0]
    saving.backward(loss_of(saving, batch_of(0, 0)))
    saving.step()
    saving.save_checkpoint(tmp_path)
    special = engine_of("Adam", 2, lambda parameters: torch.optim.Adam(parameters, lr=0.01, **{option: True}))
    special.load_checkpoint(tmp_path)
    for engine in (saving, special):
        engine.backward(loss_of(engine, batch_of(1, 0)))
        engine.step()
    for one, other in zip(special.module.parameters(), saving.module.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
