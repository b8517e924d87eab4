"""Optimizer objects of programs and of other packages: what PyTorch would give them, the engine gives them. The oracle
is plain PyTorch."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from training import config_of, flat_parameters, part_of_batch, small_net, token_batch

import zeropage
from zeropage import errors
from zeropage.testing import run_ranks

Make = Callable[[Any], torch.optim.Optimizer]
STEPS = 4


def settings(stage: int, **sections: Any) -> dict[str, Any]:
    """Several pages, and an optimizer that the configuration does not name."""
    own = {"page_numel": 5000, **sections.pop("zeropage", {})}
    made = {**config_of(stage, clipping=0.0, zeropage=own, **sections), "zero_allow_untested_optimizer": True}
    del made["optimizer"]
    return made


def plain_run(make: Make, steps: int = STEPS, between: Callable[[Any, Any, int], None] | None = None) -> torch.Tensor:
    model = small_net()
    optimizer = make(model.parameters())
    for step in range(steps):
        optimizer.zero_grad()
        model(*token_batch(step)).backward()
        optimizer.step()
        if between is not None:
            between(model, optimizer, step)
    return flat_parameters(model)


def engine_run(
    make: Make,
    stage: int,
    world: int = 2,
    steps: int = STEPS,
    between: Callable[[Any, Any, int], None] | None = None,
    after: Callable[[Any, Any], Any] | None = None,
    **sections: Any,
) -> list[tuple[torch.Tensor, Any]]:
    """(parameters, what `after` returned) of each rank. `between` and `after` get the engine and the user's own
    optimizer object."""
    model = small_net()

    def run(rank: int, communicator: Any) -> tuple[torch.Tensor, Any]:
        own = copy.deepcopy(model)
        optimizer = make(own.parameters())
        engine = zeropage.initialize(model=own, optimizer=optimizer, config=settings(stage, **sections))[0]
        for step in range(steps):
            engine.backward(engine(*part_of_batch(token_batch(step), world, rank)))
            engine.step()
            if between is not None:
                between(engine, optimizer, step)
        seen = None if after is None else after(engine, optimizer)
        return flat_parameters(engine.module), seen

    return run_ranks(world, run)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    difference = (found - expected).abs()
    assert difference.max().item() < 2e-4 and difference.mean().item() < 2e-6, (
        difference.max().item(),
        difference.mean().item(),
    )


class Counting(torch.optim.Optimizer):
    """Adam without its second moment; counts steps in the group from the first step on, as many published optimizers
    do."""

    def __init__(self, parameters: Any, lr: Any = 1e-2):
        super().__init__(parameters, {"lr": lr, "beta": 0.9})
        self.calls = 0
        self.seen = 0
        self.fail_at: int | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.calls += 1
        for group in self.param_groups:
            if "step" not in group:
                group["step"] = 0
            group["step"] += 1
            self.seen = len(group["params"])
            for p in group["params"]:
                if p.grad is None:
                    continue
                moment = self.state[p].setdefault("moment", torch.zeros_like(p))
                moment.lerp_(p.grad, 1 - group["beta"])
                p.sub_(moment * (group["lr"] / (1 - group["beta"] ** group["step"])))
        if self.calls == self.fail_at:
            raise ValueError("the user's own error")


@pytest.mark.parametrize("stage", (0, 1, 2, 3))
def test_step_runs_once_per_update(stage):
    """Catches a step per page: counts in groups that run ahead, differently on each rank, and updates that follow
    them."""
    outcomes = engine_run(
        Counting, stage, after=lambda engine, optimizer: (optimizer.calls, optimizer.param_groups[0]["step"])
    )
    expected = plain_run(Counting)
    for parameters, seen in outcomes:
        assert seen == (STEPS, STEPS)
        assert_close(parameters, expected)


def test_masters_of_bf16_are_what_it_updates():
    """Catches a step on 16-bit values, or one whose result is not rounded into the parameters: small steps that bf16
    cannot see add up."""

    def steps_of(dtype: dict[str, Any]) -> torch.Tensor:
        model = nn.Linear(64, 8, bias=False)
        with torch.no_grad():
            model.weight.fill_(1.0)
        optimizer = Counting(model.parameters(), lr=1e-3)
        engine = zeropage.initialize(
            model=model, optimizer=optimizer, config={**settings(0), "train_batch_size": 1, **dtype}
        )[0]
        for _ in range(8):
            engine.backward(engine(torch.ones(1, 64, dtype=model.weight.dtype)).float().sum())
            engine.step()
        return flat_parameters(engine.module)

    assert torch.equal(steps_of({"bf16": {"enabled": True}}), steps_of({}).bfloat16().float())


@pytest.mark.parametrize("section", ("offload_optimizer", "nvme"))
def test_masters_on_the_host_or_a_drive(section, tmp_path):
    """Catches a step that does not get state that is offloaded or on a drive, or whose result is not written back
    there."""
    target = {"device": "cpu"} if section == "offload_optimizer" else {"device": "nvme", "nvme_path": str(tmp_path)}
    sections: dict[str, Any] = {"zero_optimization": {"offload_optimizer": target}}
    for parameters, calls in engine_run(Counting, 2, after=lambda engine, optimizer: optimizer.calls, **sections):
        assert calls == STEPS
        assert_close(parameters, plain_run(Counting))


class Idle(nn.Module):
    """A parameter that trains, and a larger one that never gets a gradient."""

    def __init__(self):
        super().__init__()
        self.used = nn.Parameter(torch.ones(100))
        self.idle = nn.Parameter(torch.ones(10_000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.used * x).sum()


def test_parameters_without_gradient():
    """Catches a step that does not see them, sees them with a gradient, or fails at a page without any gradient."""
    model = Idle()
    optimizer = Counting(model.parameters())
    config = {**settings(2, zeropage={"page_numel": 1}), "train_batch_size": 1}
    engine = zeropage.initialize(model=model, optimizer=optimizer, config=config)[0]
    for _ in range(2):
        engine.backward(engine(torch.ones(100)))
        engine.step()
    assert optimizer.seen == 2 and torch.equal(model.idle, torch.ones(10_000)) and model.used.max() < 1.0


class Hooked:
    """Counts the calls of hooks, and changes the rate before the third update."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.before = self.after = 0
        optimizer.register_step_pre_hook(self.pre)
        optimizer.register_step_post_hook(self.post)

    def pre(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.before += 1
        if self.before == 3:
            optimizer.param_groups[0]["lr"] = 1e-3

    def post(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.after += 1


@pytest.mark.parametrize("stage", (0, 2))
@pytest.mark.parametrize(
    "make",
    (Counting, lambda p: torch.optim.AdamW(p, lr=1e-2, eps=1e-4), lambda p: torch.optim.RMSprop(p, lr=1e-3, eps=1e-4)),
)
def test_hooks_run_once_per_update(make, stage):
    """Catches hooks that run per page, never (where the engine has the update itself), or too late for what they
    write."""
    counters: dict[int, Hooked] = {}

    def hooked(parameters: Any) -> torch.optim.Optimizer:
        optimizer = make(parameters)
        counters[id(optimizer)] = Hooked(optimizer)
        return optimizer

    expected = plain_run(hooked)
    counters.clear()
    outcomes = engine_run(hooked, stage)
    assert [(each.before, each.after) for each in counters.values()] == [(STEPS, STEPS)] * 2
    for parameters, _ in outcomes:
        assert_close(parameters, expected)


def test_hooks_on_the_engines_optimizer():
    """Catches hooks that count skipped steps, and one of a configured optimizer that is never called."""
    model = nn.Linear(4, 1)
    config = {**config_of(0, batch=1), "fp16": {"enabled": True, "initial_scale_power": 4}}
    engine, optimizer, *_ = zeropage.initialize(model=model, config=config)
    hooked = Hooked(optimizer)
    for scale in (1.0, float("inf"), 1.0):
        engine.backward(engine(torch.ones(1, 4).half()).float().sum() * scale)
        engine.step()
    assert (hooked.before, hooked.after, engine.skipped_steps) == (2, 2, 1)


@pytest.mark.parametrize("clipping", (0.0, 0.1))
@pytest.mark.parametrize("stage", range(4))
def test_pre_hooks_see_the_gradients_of_the_update(stage, clipping):
    """Catches p.grad that is None in a step pre-hook, gradients there that are not clipped, and writes of a hook that
    the update does not use."""
    norms: dict[int, list[float]] = {}

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, eps=1e-4)
        seen = norms.setdefault(id(optimizer), [])
        kept = []

        def pre(optimizer: Any, args: Any, kwargs: Any) -> None:
            parameters = optimizer.param_groups[0]["params"]
            seen.append(torch.nn.utils.get_total_norm([p.grad for p in parameters]).item())
            kept.append((parameters[3].grad, parameters[3].grad.clone()))
            if len(seen) == 2:
                parameters[0].grad.mul_(0.5)
            if len(seen) == 3:
                parameters[-1].grad = None
            assert all(torch.equal(gradient, value) for gradient, value in kept)

        optimizer.register_step_pre_hook(pre)
        return optimizer

    model = small_net()
    optimizer = make(model.parameters())
    for step in range(STEPS):
        optimizer.zero_grad()
        model(*token_batch(step)).backward()
        if clipping:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clipping)
        optimizer.step()
    expected_norms = norms.popitem()[1]
    outcomes = engine_run(make, stage, gradient_clipping=clipping)
    for seen in norms.values():
        assert seen == pytest.approx(expected_norms, rel=1e-4)
    for parameters, _ in outcomes:
        assert_close(parameters, flat_parameters(model))


@pytest.mark.parametrize("stage", (0, 1, 3))
@pytest.mark.parametrize("failing", (Counting, torch.optim.AdamW))
def test_an_error_in_the_step_applies_nothing(stage, failing):
    """Catches half an update, ranks that differ after it, and an engine that refuses everything from then on."""

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = failing(parameters, lr=1e-2)
        if failing is not Counting:
            optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: fail(optimizer))
        return optimizer

    def fail(optimizer: Any) -> None:
        optimizer.calls = getattr(optimizer, "calls", 0) + 1
        if optimizer.calls == getattr(optimizer, "fail_at", None):
            raise ValueError("the user's own error")

    def run(rank: int, communicator: Any) -> torch.Tensor:
        model = copy.deepcopy(net)
        optimizer = make(model.parameters())
        optimizer.fail_at = 2 if rank == 1 else None
        engine = zeropage.initialize(model=model, optimizer=optimizer, config=settings(stage))[0]
        for step in range(4):
            before = flat_parameters(engine.module)
            engine.backward(engine(*part_of_batch(token_batch(step), 2, rank)))
            if step != 1:
                engine.step()
                continue
            expected = (
                (ValueError, "the user's own error")
                if rank == 1
                else (errors.PeerError, "rank 1.*the user's own error")
            )
            with pytest.raises(expected[0], match=f"(?s){expected[1]}"):
                engine.step()
            assert torch.equal(flat_parameters(engine.module), before)
            assert engine.global_steps == 1
            if failing is Counting:
                assert optimizer.param_groups[0]["step"] == 1
        return flat_parameters(engine.module)

    net = small_net()
    first, second = run_ranks(2, run)
    assert torch.equal(first, second) and not torch.equal(first, flat_parameters(net))


def test_data_that_the_step_replaces():
    """Catches an optimizer whose `p.data = ...` is lost, because the engine only reads the memory that it has given."""

    class Replacing(torch.optim.Optimizer):
        def __init__(self, parameters: Any):
            super().__init__(parameters, {"lr": 1e-2})

        def step(self, closure: Any = None) -> None:
            for p in self.param_groups[0]["params"]:
                p.data = p.data - self.param_groups[0]["lr"] * p.grad

    for parameters, _ in engine_run(Replacing, 1):
        assert_close(parameters, plain_run(Replacing))


@pytest.mark.parametrize("stage", (0, 2))
@pytest.mark.parametrize("make", (Counting, torch.optim.AdamW))
def test_a_rate_that_is_a_tensor(make, stage):
    """Catches a tensor that becomes a float in the user's own group, so that fill_() has no effect."""

    def halve(engine: Any, optimizer: Any, step: int) -> None:
        optimizer.param_groups[0]["lr"].fill_(1e-2 / 2 ** (step + 1))

    def of_tensor(parameters: Any) -> torch.optim.Optimizer:
        return make(
            parameters, lr=torch.tensor(1e-2), **({"eps": 1e-4, "foreach": False} if make is not Counting else {})
        )

    expected = plain_run(of_tensor, between=halve)
    for parameters, kept in engine_run(
        of_tensor,
        stage,
        between=halve,
        after=lambda engine, optimizer: isinstance(optimizer.param_groups[0]["lr"], torch.Tensor),
    ):
        assert kept
        assert_close(parameters, expected)


def test_a_configured_schedule_fills_the_tensor():
    """Catches a schedule of the configuration that replaces the user's tensor, or does not reach it."""
    model = nn.Linear(4, 1)
    rate = torch.tensor(1.0)
    optimizer = Counting(model.parameters(), lr=rate)
    schedule = {
        "type": "WarmupLR",
        "params": {"warmup_min_lr": 0.0, "warmup_max_lr": 0.1, "warmup_num_steps": 10, "warmup_type": "linear"},
    }
    engine = zeropage.initialize(
        model=model, optimizer=optimizer, config={**settings(0, scheduler=schedule), "train_batch_size": 1}
    )[0]
    for _ in range(3):
        engine.backward(engine(torch.ones(1, 4)).sum())
        engine.step()
    assert optimizer.param_groups[0]["lr"] is rate and 0.0 < rate.item() < 0.1


def test_step_of_the_object_is_refused():
    """Catches a step that is left in the loop and counts, or decays weights, in addition to the engine's."""
    model = nn.Linear(4, 1)
    optimizer = Counting(model.parameters())
    zeropage.initialize(model=model, optimizer=optimizer, config={**settings(0), "train_batch_size": 1})
    with pytest.raises(errors.UsageError, match="engine.step"):
        optimizer.step()


@pytest.mark.parametrize("given", [None, "AdamW", "Adamax"], ids=["in the configuration", "AdamW", "Adamax"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_another_optimizer_in_the_loop_is_reported(stage, given, capfd):
    """Catches a second update after the engine's, by an optimizer that the engine was not given, without a message; and
    a warning where there is none."""

    def run(rank: int, also: bool) -> None:
        model, config = small_net(), config_of(stage, zeropage={"page_numel": 5000})
        own = getattr(torch.optim, given)(model.parameters(), **config.pop("optimizer")["params"]) if given else None
        engine, *_ = zeropage.initialize(model=model, optimizer=own, config=config)
        unknown_to_engine = torch.optim.SGD(engine.module.parameters(), lr=1e-2)
        for step in range(3):
            engine.backward(engine(*part_of_batch(token_batch(step), 2, rank)))
            if also:
                unknown_to_engine.step()
            engine.step()
            with torch.no_grad():
                engine.module.contract[0].weight.clamp_(-1.0, 1.0)  # between updates programs may write

    run_ranks(2, lambda rank, _: run(rank, False))
    assert "left in the loop" not in capfd.readouterr().err
    run_ranks(2, lambda rank, _: run(rank, True))
    assert capfd.readouterr().err.count("left in the loop") == 1


def test_memory_of_a_step():
    """Catches copies that are not counted, or that stay: 4 bytes for each element that the rank updates, while the step
    runs."""
    model = nn.Linear(512, 512, bias=False)

    def run(rank: int, communicator: Any) -> tuple[int, int]:
        own = copy.deepcopy(model)
        engine = zeropage.initialize(
            model=own, optimizer=Counting(own.parameters()), config={**settings(2), "train_batch_size": 2}
        )[0]
        before = engine._core.measured_bytes()["buffers"]
        engine.backward(engine(torch.ones(1, 512)).sum())
        engine.step()
        after = engine._core.measured_bytes()["buffers"]
        return after[0] - before[0], after[1] - before[0]

    for kept, peak in run_ranks(2, run):
        assert kept == 0 and 4 * 512 * 256 <= peak <= 4 * 512 * 256 + 4096
