"""Optimizers that PyTorch runs on shards, by name, as an object or as a callable; and torch's schedulers on every kind
of optimizer."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from training import config_of, flat_parameters, part_of_batch, small_net, token_batch

import zeropage
from zeropage import errors
from zeropage.testing import run_ranks

STEPS = 20
NUMEL = 3000

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "RMSprop": {"lr": 1e-3, "momentum": 0.9, "centered": True, "weight_decay": 0.1},
    "Adamax": {"betas": [0.8, 0.9]},
    "Adadelta": {"rho": 0.8},
    "NAdam": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "RAdam": {"lr": 1e-2},
    "ASGD": {"t0": 5, "lambd": 1e-2},
    "Rprop": {"etas": [0.4, 1.1], "step_sizes": [1e-5, 10]},
    "Adam": {
        "lr": 1e-2,
        "amsgrad": True,
    },  # as objects only: by these names the engine has its own, without such options
    "SGD": {"lr": 1e-2, "maximize": True},
}
CONFIGURED = [name for name in OPTIMIZERS if name not in ("Adam", "SGD")]


class Vector(nn.Module):
    """One parameter whose gradient is what the forward is given, and one that never gets any."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.randn(NUMEL, generator=torch.Generator().manual_seed(0)))
        self.idle = nn.Parameter(torch.ones(5))

    def forward(self, gradient: torch.Tensor) -> torch.Tensor:
        return (self.p * gradient).sum()


def gradient_of(step: int) -> torch.Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(step + 1))


def make(name: str, parameters: Any) -> torch.optim.Optimizer:
    return getattr(torch.optim, name)(parameters, **OPTIMIZERS[name])


def config(optimizer: dict[str, Any] | None = None, stage: int = 0, **sections: Any) -> dict[str, Any]:
    made = config_of(stage, batch=1, clipping=0.0, **sections)
    del made["optimizer"]
    return made if optimizer is None else {**made, "optimizer": optimizer}


def train(engine: Any, steps: range) -> torch.Tensor:
    for step in steps:
        engine.backward(engine(gradient_of(step)))
        engine.step()
    return engine.module.p.detach().clone()


def engine_by(way: str, name: str) -> Any:
    model = Vector()
    if way == "name":
        return zeropage.initialize(model=model, config=config({"type": name, "params": OPTIMIZERS[name]}))[0]
    if way == "object":
        return zeropage.initialize(model=model, optimizer=make(name, model.parameters()), config=config())[0]
    return zeropage.initialize(model=model, optimizer=lambda parameters: make(name, parameters), config=config())[0]


def torch_result(name: str) -> torch.Tensor:
    model = Vector()
    optimizer = make(name, model.parameters())
    for step in range(STEPS):
        model.p.grad = gradient_of(step)
        optimizer.step()
    return model.p.detach()


@pytest.mark.parametrize(
    "way, name",
    [("name", name) for name in CONFIGURED] + [(way, name) for way in ("object", "callable") for name in OPTIMIZERS],
)
def test_same_bits_as_torch(way, name):
    """Catches a hyperparameter without effect, and shards that are not what the optimizer should see."""
    engine = engine_by(way, name)
    assert torch.equal(train(engine, range(STEPS)), torch_result(name))
    assert torch.equal(engine.module.idle, torch.ones(5)), "a parameter without gradient was updated"
    assert engine.optimizer_name() == name.lower()
    assert [p.shape for p in engine.optimizer.param_groups[0]["params"]] == [(NUMEL,), (5,)]


def test_micro_steps():
    """Catches an optimizer that runs before an accumulation boundary, or is asked for there."""
    accumulated = {**config({"type": "RMSprop"}), "train_batch_size": 2, "gradient_accumulation_steps": 2}
    found = train(zeropage.initialize(model=Vector(), config=accumulated)[0], range(4))
    model = Vector()
    optimizer = torch.optim.RMSprop(model.parameters())
    for step in (0, 2):
        model.p.grad = gradient_of(step) / 2 + gradient_of(step + 1) / 2
        optimizer.step()
    assert torch.equal(found, model.p)


def run_net(
    world: int,
    stage: int,
    name: str,
    steps: range,
    bf16: bool = False,
    folder: str | None = None,
    tag: str = "",
    save: bool = False,
):
    """small_net on ranks as threads, from a checkpoint when there is a tag; the parameters."""
    sections: dict[str, Any] = {"bf16": {"enabled": True}} if bf16 else {}
    own: dict[str, Any] = {
        "zeropage": {"page_numel": 5000},
        "zero_optimization": {"stage3_param_persistence_threshold": 100},
    }
    settings = {**config_of(stage, batch=8, **own, **sections), "optimizer": {"type": name, "params": OPTIMIZERS[name]}}

    model = small_net()

    def run(rank: int, communicator: Any) -> torch.Tensor:
        engine = zeropage.initialize(model=copy.deepcopy(model), config=settings)[0]
        if tag:
            engine.load_checkpoint(folder, tag)
        for step in steps:
            engine.backward(engine(*part_of_batch(token_batch(step), world, rank)))
            engine.step()
        if save:
            engine.save_checkpoint(folder, tag=f"world{world}")
        return flat_parameters(engine.module)

    return run_ranks(world, run)[0]


@pytest.mark.parametrize("bf16", (False, True))
@pytest.mark.parametrize("name", ("RMSprop", "NAdam"))
def test_stages_give_the_same_bits(name, bf16):
    """Catches shards that are cut, scaled, clipped or rounded differently at one stage than at another."""
    expected = run_net(2, 1, name, range(4), bf16)
    for stage in (2, 3) if bf16 else (0, 2, 3):
        assert torch.equal(run_net(2, stage, name, range(4), bf16), expected), stage


@pytest.mark.parametrize("name", ("RMSprop", "NAdam", "Rprop"))
def test_checkpoints_continue_at_another_world_and_stage(tmp_path, name):
    """Catches state that is not saved, or returns to other elements: stage 0 resumes where stage 3 ended, and one rank
    where two did."""
    assert not torch.equal(run_net(2, 3, name, range(2), folder=tmp_path, save=True), run_net(2, 3, name, range(4)))
    straight = run_net(2, 3, name, range(4))
    assert torch.equal(run_net(2, 0, name, range(2, 4), folder=tmp_path, tag="world2"), straight)
    alone = run_net(1, 1, name, range(2, 4), folder=tmp_path, tag="world2", save=True)
    assert (alone - straight).abs().max().item() < 1e-4  # another order of summation
    assert torch.equal(run_net(4, 2, name, range(0), folder=tmp_path, tag="world1"), alone)


def test_checkpoint_of_another_optimizer_is_refused(tmp_path):
    """Catches state of one optimizer that another one loads."""
    engine = engine_by("name", "RMSprop")
    train(engine, range(1))
    engine.save_checkpoint(tmp_path)
    with pytest.raises(errors.CheckpointError, match="adadelta.*rmsprop"):
        engine_by("name", "Adadelta").load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ("NAdam", "SGD"))
def test_training_continues_from_a_state_dict(name):
    """Catches a state dict without the state, or one that is taken over by reference."""
    engine = engine_by("object", name)
    train(engine, range(3))
    saved = copy.deepcopy(engine.optimizer.state_dict())
    other = engine_by("object", name)
    train(other, range(3))
    other.optimizer.load_state_dict(saved)
    assert torch.equal(train(engine, range(3, 6)), train(other, range(3, 6)))
    if name == "NAdam":
        broken = {**saved, "state": {0: {"exp_avg": torch.zeros(7)}}}
        with pytest.raises(errors.UsageError, match=r"exp_avg.*\[7\]"):
            other.optimizer.load_state_dict(broken)


class Signs(torch.optim.Optimizer):
    """An optimizer class of a user, which counts its steps in the group."""

    def __init__(self, parameters: Any, lr: float = 1e-2):
        super().__init__(parameters, {"lr": lr, "count": 0})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["count"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad.sign(), alpha=-group["lr"] / group["count"])


def test_own_optimizers_step_once():
    """Catches a user's class that is refused although it gets all parameters unsharded; and groups that count pages."""
    settings = config(zeropage={"page_numel": 1})
    model = nn.ModuleList([Vector(), Vector()])
    model.forward = lambda gradient: model[0](gradient) + model[1](gradient)
    engine = zeropage.initialize(model=model, optimizer=Signs(model.parameters()), config=settings)[0]
    expected = Vector().p.detach().clone()
    for step in range(3):
        engine.backward(engine(gradient_of(step)))
        engine.step()
        expected -= gradient_of(step).sign() * (1e-2 / (step + 1))
    assert engine.optimizer.param_groups[0]["count"] == 3
    assert all((part.p - expected).abs().max().item() < 1e-6 for part in model)


SCHEDULERS = {
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 2, 0.5),
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=8),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0),
}


@pytest.mark.parametrize("optimizer", ("AdamW", "RMSprop"))
@pytest.mark.parametrize("name", SCHEDULERS)
def test_torch_schedulers(name, optimizer):
    """Catches rates and momenta that a scheduler sets and the update does not use, on the engine's update and on
    torch's."""
    params = {"lr": 1e-3} if optimizer == "AdamW" else {"lr": 1e-3, "momentum": 0.9}
    plateau = name == "ReduceLROnPlateau"
    losses = [1.0, 2.0, 0.5, 3.0, 2.5, 2.0]
    model = Vector()
    plain = getattr(torch.optim, optimizer)(
        model.parameters(), **params, **({"weight_decay": 0.0} if optimizer == "AdamW" else {})
    )
    scheduler = SCHEDULERS[name](plain)
    rates = []
    for step, loss in enumerate(losses):
        model.p.grad = gradient_of(step)
        plain.step()
        scheduler.step(*([loss] if plateau else []))
        rates.append(plain.param_groups[0]["lr"])
    settings = config({"type": optimizer, "params": params})
    engine = zeropage.initialize(model=Vector(), lr_scheduler=SCHEDULERS[name], config=settings)[0]
    found = []
    for step, loss in enumerate(losses):
        engine.backward(engine(gradient_of(step)))
        engine.step(lr_kwargs={"metrics": loss} if plateau else None)
        found.append(engine.get_lr()[0])
    assert found == rates and len(set(rates)) > 1
    assert (engine.module.p - model.p).abs().max().item() < 1e-6


@pytest.mark.parametrize("stage", (0, 2))
def test_its_state_is_in_the_memory_table(stage):
    """Catches state that is not counted: momentum, square average and mean of a centered RMSprop, sharded according to
    the stage."""
    model = nn.Linear(128, 128, bias=False)
    config = {**config_of(stage), "optimizer": {"type": "RMSprop", "params": OPTIMIZERS["RMSprop"]}}

    def run(rank: int, communicator: Any) -> tuple[int, int]:
        engine = zeropage.initialize(model=copy.deepcopy(model), config=config)[0]
        before = engine.memory_report().ranks[rank]["optimizer"]
        engine.backward(engine(torch.ones(1, 128)).sum())
        engine.step()
        return before, engine.memory_report().ranks[rank]["optimizer"]

    for before, after in run_ranks(2, run):
        elements = 128 * 128 // (1 if stage == 0 else 2)
        assert before == 0 and 3 * 4 * elements <= after <= 3 * 4 * elements + 64


@pytest.mark.parametrize("given", (None, {"loss": 1.0}))
def test_a_missing_metric_ends_no_update(given):
    """Catches ReduceLROnPlateau whose step fails when the parameters are updated already, and an argument that no
    scheduler takes."""
    engine = zeropage.initialize(
        model=Vector(), lr_scheduler=SCHEDULERS["ReduceLROnPlateau"], config=config({"type": "AdamW"})
    )[0]
    before = engine.module.p.detach().clone()
    engine.backward(engine(gradient_of(0)))
    with pytest.raises(errors.UsageError, match=r"ReduceLROnPlateau.*lr_kwargs.*metrics"):
        engine.step(lr_kwargs=given)
    assert torch.equal(engine.module.p, before) and engine.global_steps == 0
    engine.step(lr_kwargs={"metrics": 1.0})
    assert engine.global_steps == 1 and not torch.equal(engine.module.p, before)


def test_arguments_for_no_scheduler():
    """Catches a metric that is never read."""
    engine = zeropage.initialize(model=Vector(), config=config({"type": "AdamW"}))[0]
    engine.backward(engine(gradient_of(0)))
    with pytest.raises(errors.UsageError, match="lr_kwargs"):
        engine.step(lr_kwargs={"metrics": 1.0})


@pytest.mark.parametrize("make", (torch.optim.AdamW, torch.optim.RMSprop))
def test_ranks_are_compared_on_their_optimizer_objects(make):
    """Catches ranks that update their parts of the model with different hyperparameters."""

    def run(rank: int, communicator: Any) -> None:
        model = Vector()
        optimizer = make(model.parameters(), lr=1e-2, weight_decay=0.1 * rank)
        with pytest.raises(errors.PeerError, match=r"weight_decay=0\.1"):
            zeropage.initialize(model=model, optimizer=optimizer, config={**config(), "train_batch_size": 2})

    run_ranks(2, run)


def test_ranks_are_compared_on_the_kind_of_optimizer():
    """Catches a rank that was given another class of optimizer."""

    def run(rank: int, communicator: Any) -> None:
        model = Vector()
        optimizer = (torch.optim.Adamax if rank else torch.optim.NAdam)(model.parameters(), lr=1e-2)
        with pytest.raises(errors.PeerError, match="Adamax"):
            zeropage.initialize(model=model, optimizer=optimizer, config={**config(), "train_batch_size": 2})

    run_ranks(2, run)
