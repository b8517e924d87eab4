"""Optimizer objects that need whole parameters: each is owned by one rank at stages 1 to 3. The oracle is the same
object in one process."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from training import config_of, flat_parameters, part_of_batch, small_net, token_batch

import zeropage
from zeropage.errors import ConfigError
from zeropage.optimizer_sees import sums_over_model
from zeropage.testing import run_ranks
from zeropage.utils.tensor_fragment import safe_get_full_optimizer_state, safe_set_full_optimizer_state

STEPS = 4


class Ratio(torch.optim.Optimizer):
    """Steps of a parameter in proportion to its norm; state of every form: rows, a list with lists, elementwise, a
    number, a count."""

    def __init__(self, parameters: Any, lr: float = 1e-2):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(
                        step=0,
                        momentum=torch.zeros_like(p),
                        rows=torch.zeros(p.shape[:1]),
                        history=[[], "none", torch.zeros(3, 1)],
                    )
                    state["scale"] = torch.tensor(0.0)
                state["step"] += 1
                state["momentum"].lerp_(p.grad, 0.1)
                state["rows"].lerp_(p.grad.reshape(p.shape[0], -1).square().mean(1), 0.5)
                state["history"][2].add_(p.norm())
                state["scale"].add_(p.grad.norm())
                ratio = p.norm() / (
                    state["momentum"].norm()
                    + state["rows"].sum()
                    + state["history"][2].sum()
                    + state["scale"]
                    + state["step"]
                )
                p.sub_(state["momentum"] * (group["lr"] * ratio))


class OverAll(torch.optim.Optimizer):
    """One norm over all parameters."""

    def __init__(self, parameters: Any, lr: float = 1e-2):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        given = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in given]).norm()
        for p in given:
            p.sub_(p.grad * (self.param_groups[0]["lr"] / norm))


Make = Callable[[Any], torch.optim.Optimizer]


def settings(stage: int, sees: str | None = "parameters", **sections: Any) -> dict[str, Any]:
    own = {"page_numel": 5000, **({"optimizer_sees": sees} if sees else {}), **sections.pop("zeropage", {})}
    made = config_of(stage, clipping=0.0, zeropage=own, **sections)
    del made["optimizer"]
    return made


def plain_run(make: Make, steps: int = STEPS) -> tuple[torch.Tensor, dict[str, Any]]:
    model = small_net()
    optimizer = make(model.parameters())
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(2):
            (model(*part_of_batch(token_batch(step), 2, part)) / 2).backward()
        optimizer.step()
    return flat_parameters(model), optimizer.state_dict()


def engine_run(
    make: Make,
    config: dict[str, Any],
    world: int = 2,
    steps: range = range(STEPS),
    before: Callable[[Any], None] = lambda engine: None,
    after: Callable[[Any], Any] = lambda engine: None,
) -> list[tuple[torch.Tensor, Any]]:
    """(parameters, what `after` returned) of each rank."""
    model = small_net()

    def run(rank: int, communicator: Any) -> tuple[torch.Tensor, Any]:
        own = copy.deepcopy(model)
        engine = zeropage.initialize(model=own, optimizer=make(own.parameters()), config=config)[0]
        before(engine)
        for step in steps:
            engine.backward(engine(*part_of_batch(token_batch(step), world, rank)))
            engine.step()
        return flat_parameters(engine.module), after(engine)

    return run_ranks(world, run)


def state_dict(engine: Any) -> dict[str, Any]:
    return engine.optimizer.state_dict()


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    else:
        assert found == expected, where


@pytest.mark.parametrize(("stage", "page_numel"), ((0, 5000), (1, 5000), (2, 1), (3, 5000), (3, 100_000)))
def test_bits_and_state_of_one_process(stage, page_numel):
    """Catches parts of parameters in the place of whole ones, padding in a norm, state that a rank lacks, and state
    dicts that lose their form."""
    expected, state = plain_run(Ratio)
    for parameters, found in engine_run(Ratio, settings(stage, zeropage={"page_numel": page_numel}), after=state_dict):
        assert torch.equal(parameters, expected)
        assert_same(found["state"], state["state"])


@pytest.mark.parametrize(("stage", "world"), ((0, 1), (1, 4), (3, 2)))
def test_checkpoints_at_another_stage_and_world_size(stage, world, tmp_path):
    """Catches state of another owner that is not found, or is loaded in another form."""
    saved = engine_run(
        Ratio, settings(2), after=lambda engine: (engine.save_checkpoint(tmp_path), state_dict(engine))[1]
    )
    found = engine_run(
        Ratio,
        settings(stage),
        world,
        range(0),
        before=lambda engine: engine.load_checkpoint(tmp_path),
        after=state_dict,
    )
    for parameters, state in found:
        assert torch.equal(parameters, saved[0][0])
        assert_same(state["state"], saved[0][1]["state"])


@pytest.mark.parametrize("form", ("checkpoint", "state dict"))
def test_it_continues_with_the_same_bits(form, tmp_path):
    """Catches state that is loaded to a place that the optimizer does not read."""
    expected, _ = plain_run(Ratio)
    half = engine_run(
        Ratio,
        settings(3),
        steps=range(2),
        after=lambda engine: (engine.save_checkpoint(tmp_path), state_dict(engine))[1],
    )[0]

    def load(engine: Any) -> None:
        engine.load_checkpoint(tmp_path, load_optimizer_states=form == "checkpoint")
        if form == "state dict":
            engine.optimizer.load_state_dict(copy.deepcopy(half[1]))

    for parameters, _ in engine_run(Ratio, settings(1), steps=range(2, STEPS), before=load):
        assert torch.equal(parameters, expected)


@pytest.mark.parametrize("stage", (0, 1, 3))
def test_state_is_written(stage):
    """Catches an error on the ranks that do not own the parameter, and values that the owner gets in another order."""

    def change(engine: Any) -> None:
        for parameter in engine.module.parameters():
            value = torch.arange(parameter.numel(), dtype=torch.float32).reshape(parameter.shape)
            safe_set_full_optimizer_state(parameter, value, "momentum")
            assert torch.equal(safe_get_full_optimizer_state(parameter, "momentum"), value)

    engine_run(Ratio, settings(stage), steps=range(1), after=change)


def sent(engine: Any) -> int:
    """How many parameters are sent to their owners in each update."""
    whole = engine.optimizer.shards.whole
    return sum(whole.is_sent(index) for index in range(len(engine._named)) if index in whole)


def bytes_per_step(sees: str, stage: int, world: int) -> tuple[int, int]:
    """Bytes that rank 0 sends in a step of a transformer's matrices, and how many of them are sent to their owners."""

    def run(rank: int, communicator: Any) -> tuple[int, int]:
        torch.manual_seed(0)
        width = 64
        shapes = [(width, 3 * width), (3 * width, width), (width, width), (width, 4 * width), (4 * width, width)] * 8
        model = nn.Sequential(*(nn.Linear(*shape, bias=False) for shape in shapes))
        config = settings(stage, sees, zeropage={"page_numel": 200_000, "communicator": "auto"})
        engine = zeropage.initialize(
            model=model, optimizer=Ratio(model.parameters()), config={**config, "train_batch_size": world}
        )[0]
        for _ in range(2):
            before = engine._communicator.bytes_moved
            engine.backward(engine(torch.ones(1, width)).sum())
            engine.step()
        return engine._communicator.bytes_moved - before, sent(engine)

    return run_ranks(world, run)[0]


@pytest.mark.parametrize("world", (2, 4))
@pytest.mark.parametrize("stage", (1, 2, 3))
def test_nothing_is_sent_twice(stage, world):
    """Catches parameters that are sent to another rank within an update, and pages that are padding for a large
    part."""
    bytes_sent, parameters_sent = bytes_per_step("parameters", stage, world)
    assert parameters_sent == 0
    assert bytes_sent <= 1.08 * bytes_per_step("elements", stage, world)[0]


def test_pages_are_large_enough():
    """Catches the default size of pages, which holds a matrix or two, so that almost all of them are sent in each
    update."""

    def run(rank: int, communicator: Any) -> int:
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(32)))
        engine = zeropage.initialize(
            model=model,
            optimizer=Ratio(model.parameters()),
            config={**settings(1, zeropage={"page_numel": 0}), "train_batch_size": 2},
        )[0]
        return sent(engine)

    assert run_ranks(2, run) == [0, 0]


@pytest.mark.parametrize("stage", (0, 3))
def test_what_sums_over_the_model(stage):
    """Catches a norm over the parameters of one rank in the place of all of them, of an unknown class, although
    Accelerate's key is set."""
    config = {**settings(stage, None), "zero_allow_untested_optimizer": True}
    if stage == 0:
        assert torch.equal(engine_run(OverAll, config)[0][0], plain_run(OverAll)[0])
        return
    with pytest.raises(ConfigError, match="OverAll sums over all parameters.*stage 3"):
        engine_run(OverAll, config)


def test_classes_that_are_not_known():
    """Catches a class that is run on a guess at stages 1 to 3, a message without advice, and a refusal where there is
    no risk."""
    with pytest.raises(ConfigError, match="Ratio.*optimizer_sees.*elements.*parameters.*model"):
        engine_run(Ratio, settings(1, None), steps=range(0))
    expected, _ = plain_run(Ratio)
    for config in (settings(0, None), {**settings(2, None), "zero_allow_untested_optimizer": True}):
        assert torch.equal(engine_run(Ratio, config)[0][0], expected)


def test_trying_a_copy_does_not_change_the_object():
    """Catches a trial that runs the program's hooks, counts in its groups, or makes state."""
    model = nn.Linear(4, 4)
    calls = []
    for kind, sums in ((Ratio, False), (OverAll, True)):
        optimizer = kind(model.parameters())
        optimizer.register_step_pre_hook(lambda *given: calls.append(given))
        before, groups = (
            copy.deepcopy(model.state_dict()),
            copy.deepcopy([{**group, "params": 0} for group in optimizer.param_groups]),
        )
        assert sums_over_model(optimizer) == sums
        assert (
            not calls and not optimizer.state and [{**group, "params": 0} for group in optimizer.param_groups] == groups
        )
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ("LBFGS", "SparseAdam"))
def test_a_step_that_needs_more_is_refused(name):
    """Catches an optimizer that would get no closure, in the middle of the first update."""
    model = nn.Linear(4, 4)
    with pytest.raises(ConfigError, match=f"{name} needs more than gradients"):
        zeropage.initialize(
            model=model, optimizer=getattr(torch.optim, name)(model.parameters()), config={"train_batch_size": 1}
        )


def test_layouts_in_memory(tmp_path):
    """Catches values of a channels-last or transposed parameter that are passed in another order than that of its
    shape."""

    def make(memory: bool) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 8))
        if memory:
            model[0].to(memory_format=torch.channels_last)
            model[2].weight.data = model[2].weight.data.t().contiguous().t()
        return model

    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = make(True)
    optimizer = Ratio(plain.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        for part in x.chunk(2):
            (plain(part).square().mean() / 2).backward()
        optimizer.step()

    def run(rank: int, communicator: Any) -> tuple[torch.Tensor, Any]:
        model = copy.deepcopy(made)
        config = {**settings(3), "train_batch_size": 2}
        engine = zeropage.initialize(model=model, optimizer=Ratio(model.parameters()), config=config)[0]
        for _ in range(2):
            engine.backward(engine(x.chunk(2)[rank]).square().mean())
            engine.step()
        return flat_parameters(engine.module), state_dict(engine)

    made = make(True)
    for parameters, state in run_ranks(2, run):
        assert (parameters - flat_parameters(plain)).abs().max().item() < 1e-6
        for position, each in optimizer.state_dict()["state"].items():
            assert torch.allclose(state["state"][position]["momentum"], each["momentum"], atol=1e-6)


def test_parameters_that_are_added_later():
    """Catches parameters of a group that is added, which an optimizer gets in parts."""
    model = small_net()
    extra = nn.Parameter(torch.ones(7, 9))

    def run(rank: int, communicator: Any) -> torch.Tensor:
        own, later = copy.deepcopy(model), nn.Parameter(extra.detach().clone())
        optimizer = Ratio(own.parameters())
        engine = zeropage.initialize(model=own, optimizer=optimizer, config=settings(2))[0]
        own.register_parameter("later", later)
        engine.optimizer.add_param_group({"params": [later], "lr": 1e-2})
        for step in range(2):
            engine.backward(engine(*part_of_batch(token_batch(step), 2, rank)) + own.later.square().mean())
            engine.step()
        return own.later.detach().clone()

    plain = nn.Parameter(extra.detach().clone())
    optimizer = Ratio([plain])
    for _ in range(2):
        optimizer.zero_grad()
        plain.square().mean().backward()
        optimizer.step()
    for later in run_ranks(2, run):
        assert torch.allclose(later, plain, atol=1e-7)
