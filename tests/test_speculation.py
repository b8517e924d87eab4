"""Updates overlapped with the backward, before the global check of their step: the bits of those that wait, whatever
happens in between."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from training import config_of, flat_parameters

import zeropage
from zeropage.testing import run_ranks

STEPS = 1000
BACKWARD_OF_A_LAYER_S = 0.02  # during which an update of a page begins and ends
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True, "loss_scale": 16}},
}


class Tiny(nn.Module):
    """Two layers of 64 x 64; each of two ranks has half of them; quick enough for thousands of steps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        # Noise to be predicted, so that gradients do not vanish.
        found = self.layers(inputs.to(self.layers[0].weight.dtype)).float()
        return (found - 10 * inputs.roll(1, dims=0)).square().mean()


def inputs_of(step: int, rank: int) -> torch.Tensor:
    return torch.randn(4, 64, generator=torch.Generator().manual_seed(2 * step + rank))


def settings_of(stage: int, precision: str, log_bytes: int, clipping: float, **sections: Any) -> dict[str, Any]:
    zero = {"offload_optimizer": {"device": "cpu"}, "stage3_max_live_parameters": 5000}
    own = {"page_numel": 1, "speculation_bytes": log_bytes, **sections.pop("zeropage", {})}
    settings = config_of(
        stage, clipping=clipping, zero_optimization=zero, zeropage=own, **PRECISIONS[precision], **sections
    )
    settings["optimizer"]["params"]["lr"] = 1e-3
    return settings


def train(stage: int, precision: str, log_bytes: int) -> tuple[torch.Tensor, list[tuple[bool, float]], dict[str, int]]:
    """1000 steps of two ranks. At random, some steps overflow on one rank, and some are clipped. Returns the
    parameters, the result of each step, and how many steps of rank 0 had updated pages early and were undone."""
    settings = settings_of(stage, precision, log_bytes, clipping=5.0)
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
            # The same draws on all ranks. Large factors clip, and some clip only with what the other rank adds. A NaN
            # is in the gradients of rank 1 alone.
            factor = 10.0 ** chance.uniform(-0.9, 0.4)
            bad_rank = chance.choice([0, 1, *(10 * [None])]) if precision != "fp32" else None
            poisoned = bad_rank == rank
            engine.backward(engine(inputs_of(step, rank)) * factor)
            engine._core.wait_for_updates()
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


@pytest.mark.parametrize(("stage", "precision"), [(1, "fp32"), (3, "bf16"), (2, "fp16"), (3, "fp32")])
def test_a_thousand_steps_have_the_same_bits(stage, precision):
    """Catches an update that is not undone exactly, is done twice, or is visible before its global check."""
    waited, steps, none = train(stage, precision, 0)
    assert none == {"ahead": 0, "undone": 0}
    log_bytes = 30_000 if precision == "fp32" else 1 << 20  # for one of the two pages, and for both
    found, found_steps, counts = train(stage, precision, log_bytes)
    assert torch.equal(found, waited) and found_steps == steps
    assert counts["ahead"] > 300 and counts["undone"] > 50, counts


def nothing(engine: Any, rank: int) -> None:
    pass


def another_backward(engine: Any, rank: int) -> None:
    engine.backward(engine(inputs_of(1000, rank)))


def other_rate(engine: Any, rank: int) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] *= 0.5


def write_parameter(engine: Any, rank: int) -> None:
    with torch.no_grad():
        engine.module.layers[0].weight.clamp_(-0.05, 0.05)


def write_and_evict(engine: Any, rank: int) -> None:
    """At stage 3 the second layer's page takes the frame of the first, whose new values are written back before the
    step."""
    write_parameter(engine, rank)
    evaluate(engine, rank)


def begin_anew(engine: Any, rank: int) -> None:
    engine.zero_grad()
    engine.backward(engine(inputs_of(2000, rank)))


def evaluate(engine: Any, rank: int) -> None:
    with torch.no_grad():
        engine(inputs_of(3000, rank))


def gather(engine: Any, rank: int) -> None:
    with zeropage.zero.GatheredParameters(list(engine.module.parameters())):
        pass


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("stage", "world"), [(1, 1), (1, 2), (2, 1), (3, 2)])
@pytest.mark.parametrize(
    ("event", "undoes"),
    [
        (nothing, False),
        (another_backward, False),
        (other_rate, True),
        (write_parameter, True),
        (write_and_evict, True),
        (begin_anew, False),
        (evaluate, False),
        (gather, False),
    ],
)
def test_what_happens_between_backward_and_step_changes_no_bit(event, undoes, stage, world, precision):
    """Catches updates by sums, rates or parameters that are no longer those of the step, and parameters that change
    before it."""

    def train_with(log_bytes: int) -> list[tuple[torch.Tensor, list[float], bool, bool]]:
        base = Tiny()
        settings = settings_of(stage, precision, log_bytes, clipping=0.0)

        def run(rank: int, communicator: Any) -> tuple[torch.Tensor, list[float], bool, bool]:
            model = Tiny()
            model.load_state_dict(base.state_dict())
            engine, *_ = zeropage.initialize(model=model, config=settings)
            losses, ahead, undone = [], False, False
            for step in range(6):
                loss = engine(inputs_of(step, rank))
                losses.append(loss.item())
                engine.backward(loss)
                engine._core.wait_for_updates()
                if step % 2 == 1:
                    event(engine, rank)
                    engine._core.wait_for_updates()
                engine.step()
                ahead |= engine._core.last_step.pages_ahead > 0
                undone |= engine._core.last_step.undone
            return flat_parameters(engine.module), losses, ahead, undone

        return run_ranks(world, run)

    waited = train_with(0)
    found = train_with(1 << 20)
    for mine, theirs in zip(found, waited, strict=True):
        assert torch.equal(mine[0], theirs[0]) and mine[1] == theirs[1]
    assert all(mine[2] for mine in found)
    assert any(mine[3] for mine in found) or not undoes


class ThreeSegments(nn.Module):
    """One weight in three reentrant segments: its gradient arrives in parts, the later ones when the page is reduced
    already."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.shared = nn.Linear(64, 64, bias=False)
        self.first = nn.Linear(64, 64, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs)
        for _ in range(3):
            hidden = checkpoint(lambda x: self.shared(x).tanh(), hidden, use_reentrant=True)
            hidden = hidden + 0 * hidden.sum()
        return hidden.square().mean()


@pytest.mark.parametrize("sent_as", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_gradients_that_arrive_late_change_no_bit(world, stage, sent_as):
    """Catches an update by the first part of a gradient, and parts that are added in another order or type."""

    def train_with(log_bytes: int) -> list[tuple[torch.Tensor, bool]]:
        base = ThreeSegments()
        settings = settings_of(stage, "fp32", log_bytes, clipping=0.0)

        def run(rank: int, communicator: Any) -> tuple[torch.Tensor, bool]:
            model = ThreeSegments()
            model.load_state_dict(base.state_dict())
            engine, *_ = zeropage.initialize(model=model, config=settings | {"communication_data_type": sent_as})
            model.shared.weight.register_hook(lambda gradient: engine._core.wait_for_updates())
            ahead = False
            for step in range(6):
                engine.backward(engine(inputs_of(step, rank)))
                engine._core.wait_for_updates()
                engine.step()
                ahead |= engine._core.last_step.pages_ahead > 0
            return flat_parameters(engine.module), ahead

        return run_ranks(world, run)

    waited, found = train_with(0), train_with(1 << 20)
    for mine, theirs in zip(found, waited, strict=True):
        assert torch.equal(mine[0], theirs[0])
    assert all(mine[1] for mine in found)


def spans_of(path: Path, name: str) -> list[tuple[float, float]]:
    """Begin and end of the spans of that name in a trace."""
    events = json.loads(path.read_text())
    return [(event["ts"], event["ts"] + event["dur"]) for event in events if event.get("name") == name]


@pytest.mark.parametrize(("stage", "world"), [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_updates_overlap_with_the_backward(stage, world, tmp_path):
    """Catches updates that begin only when the backward has ended."""
    trace = tmp_path / "trace.json"
    written = tmp_path / "trace.rank0.json"
    base = nn.Sequential(*(nn.Linear(64, 64) for _ in range(5)))

    def run(rank: int, communicator: Any) -> int:
        model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(5)))
        model.load_state_dict(base.state_dict())
        settings = settings_of(
            stage, "bf16", 1 << 20, clipping=1e9, zeropage={"trace": {"file": str(trace), "first_step": 2}}
        )
        engine, *_ = zeropage.initialize(model=model, config=settings)
        for layer in model:  # a backward long enough to see what runs at the same time
            layer.weight.register_hook(lambda gradient: time.sleep(BACKWARD_OF_A_LAYER_S))
        for step in range(3):
            engine.backward(engine(inputs_of(step, rank).bfloat16()).float().square().mean())
            engine.step()
        return engine._core.last_step.pages_ahead

    assert min(run_ranks(world, run)) >= 3
    (backward,) = spans_of(written, "backward")
    updates = spans_of(written, "update of a page ahead")
    hidden = [update for update in updates if backward[0] < update[0] and update[1] < backward[1]]
    assert len(hidden) >= 2, (backward, updates)


def test_the_log_is_in_the_memory_table():
    """Catches bytes that are not counted, and a log although none was configured and the processors are needed for the
    backward."""
    zero = {"offload_optimizer": {"device": "cpu"}}
    for asked, log_bytes in (({}, 0), ({"speculation_bytes": 0}, 0), ({"speculation_bytes": 1 << 20}, 1 << 20)):
        settings = config_of(1, zero_optimization=zero, zeropage=asked, bf16={"enabled": True})
        engine, *_ = zeropage.initialize(model=Tiny(), config=settings)
        assert engine.memory_report().host[0]["buffers"] == log_bytes
