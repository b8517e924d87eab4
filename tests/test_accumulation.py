"""Where in the accumulation window an engine is: changed steps, forced boundaries, errors in between, and what is
counted and reported."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from training import (
    DAMPING_EPS,
    LEARNING_RATE,
    WEIGHT_DECAY,
    config_of,
    flat_parameters,
    part_of_batch,
    small_net,
    token_batch,
)

import zeropage
from zeropage.errors import UsageError
from zeropage.testing import run_ranks

WORLD = 2
STAGES = pytest.mark.parametrize("stage", [0, 1, 2, 3])


def micro_config(stage: int, accumulation: int, **sections: Any) -> dict[str, Any]:
    """Micro batches of four samples on each of two ranks."""
    return config_of(stage, batch=4 * WORLD * accumulation, accumulation=accumulation, eps=DAMPING_EPS, **sections)


def plain(model: torch.nn.Module, windows: list[tuple[list[int], int]]) -> torch.Tensor:
    """AdamW in one process. windows: the micro batches of each update, and what their sum is divided by."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=DAMPING_EPS)
    for micro_batches, divisor in windows:
        optimizer.zero_grad()
        for micro in micro_batches:
            for rank in range(WORLD):
                (model(*part_of_batch(token_batch(micro), WORLD, rank)) / (WORLD * divisor)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return flat_parameters(model)


def on_ranks(config: dict[str, Any], loop: Callable[[Any, Callable[[int], bool]], Any]) -> list[Any]:
    """`loop(engine, micro_step)` on every rank: (its result, parameters). micro_step(i): whether it updated."""
    model = small_net()

    def run(rank: int, communicator: Any) -> tuple[Any, torch.Tensor]:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config)

        def micro_step(micro: int) -> bool:
            engine.backward(engine(*part_of_batch(token_batch(micro), WORLD, rank)))
            engine.step()
            return engine.was_step_applied()

        return loop(engine, micro_step), flat_parameters(engine.module)

    return run_ranks(WORLD, run)


def assert_like_plain(outcomes: list[Any], windows: list[tuple[list[int], int]]) -> None:
    expected = plain(small_net(), windows)
    for _, parameters in outcomes:
        assert (parameters - expected).abs().max() < 1e-5


@STAGES
def test_new_accumulation_steps_begin_with_the_next_window(stage: int):
    """Catches windows counted from the start of the run, and samples counted as if all updates had the last one's
    batch."""

    def loop(engine: Any, micro_step: Callable[[int], bool]) -> Any:
        updated = [micro_step(0), micro_step(1), micro_step(2)]
        engine.set_train_batch_size(4 * WORLD * 2)
        updated += [micro_step(micro) for micro in range(3, 7)]
        return (
            [i + 1 for i, applied in enumerate(updated) if applied],
            engine.global_samples,
            engine.global_steps,
            engine.micro_steps,
        )

    outcomes = on_ranks(micro_config(stage, 3), loop)
    assert [counted for counted, _ in outcomes] == [([3, 5, 7], 56, 3, 7)] * WORLD
    assert_like_plain(outcomes, [([0, 1, 2], 3), ([3, 4], 2), ([5, 6], 2)])


@STAGES
def test_an_incomplete_window_leaves_the_next_one_whole(stage: int):
    """Catches the last, incomplete window of an epoch that shortens the first one of the next."""

    def loop(engine: Any, micro_step: Callable[[int], bool]) -> Any:
        engine.set_gradient_accumulation_boundary(True)
        updated = [micro_step(0)]
        engine.set_gradient_accumulation_boundary(None)
        return updated + [micro_step(micro) for micro in range(1, 5)], engine.global_samples

    outcomes = on_ranks(micro_config(stage, 3), loop)
    assert outcomes[0][0] == ([True, False, False, True, False], 8 + 24)
    assert_like_plain(outcomes, [([0], 3), ([1, 2, 3], 3)])


@STAGES
def test_a_window_begins_again_after_an_error(stage: int):
    """Catches gradients or counts of micro steps before an error that the program has caught."""

    def loop(engine: Any, micro_step: Callable[[int], bool]) -> Any:
        updated = [micro_step(0)]
        engine(*part_of_batch(token_batch(1), WORLD, 0))  # a forward whose loss is never used
        with pytest.raises(UsageError, match="scalar tensor"):
            engine.backward(torch.ones(2, requires_grad=True))
        engine.zero_grad()
        return updated + [micro_step(2), micro_step(3), micro_step(4)], engine.global_samples

    outcomes = on_ranks(micro_config(stage, 2), loop)
    assert outcomes[0][0] == ([False, False, True, False], 16)
    assert_like_plain(outcomes, [([2, 3], 2)])


def test_zero_grad_before_every_micro_step_is_reported(capfd):
    """Catches a loop whose zero_grad() prevents every update without a message."""

    def loop(engine: Any, micro_step: Callable[[int], bool]) -> Any:
        for micro in range(3):
            engine.zero_grad()
            assert not micro_step(micro)

    on_ranks(micro_config(1, 2), loop)
    messages = [line for line in capfd.readouterr().err.splitlines() if "zero_grad()" in line]
    assert len(messages) == 1 and "prevents every update" in messages[0]


def test_what_the_last_step_did(tmp_path):
    """Catches a step between boundaries that reports an update, and a norm or an overflow from before a checkpoint was
    loaded."""
    config = micro_config(1, 2, fp16={"enabled": True, "initial_scale_power": 4, "hysteresis": 1})

    def loop(engine: Any, micro_step: Callable[[int], bool]) -> None:
        assert engine.get_global_grad_norm() is None and not engine.was_step_applied()
        assert [micro_step(micro) for micro in range(3)] == [False, True, False]
        norm = engine.get_global_grad_norm()
        assert norm > 0 and not engine.optimizer.overflow
        assert micro_step(3)
        engine.save_checkpoint(tmp_path)
        for _ in range(2):
            engine.backward(engine(*part_of_batch(token_batch(0), WORLD, engine.global_rank)) * torch.inf)
            engine.step()
        assert engine.optimizer.overflow and not engine.was_step_applied() and engine.global_samples == 48
        assert not micro_step(4) and engine.optimizer.overflow
        engine.load_checkpoint(tmp_path)
        assert not engine.optimizer.overflow and engine.get_global_grad_norm() is None
        assert (
            not engine.was_step_applied()
            and engine.global_samples == 32
            and engine.is_gradient_accumulation_boundary() is False
        )

    on_ranks(config, loop)


PRECISIONS: dict[str, dict[str, Any]] = {
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 4, "hysteresis": 1}},
    "bf16": {"bf16": {"enabled": True}},
}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_skipped_steps_are_reported_and_counted(precision: str, capfd, tmp_path):
    """Catches a skipped step without a report of the step, the loss scale and the first parameter."""

    def loop(engine: Any, micro_step: Callable[[int], bool]) -> None:
        assert micro_step(0)
        name, weight = next((name, p) for name, p in engine.named_parameters() if "expand.1.weight" in name)
        loss = engine(*part_of_batch(token_batch(1), WORLD, engine.global_rank))
        engine.backward(loss + (weight.float().sum() * torch.inf if engine.global_rank == 1 else 0.0))
        engine.step()
        assert name == "expand.1.weight" and micro_step(2) and engine.skipped_steps == 1

    path = tmp_path / "metrics.jsonl"
    on_ranks(micro_config(2, 1, zeropage={"metrics_file": str(path)}, **copy.deepcopy(PRECISIONS[precision])), loop)
    messages = [line for line in capfd.readouterr().err.splitlines() if "was skipped" in line]
    assert len(messages) == 1 and "step 2 was skipped" in messages[0] and "'expand.1.weight'" in messages[0]
    assert ("the loss scale was 16" in messages[0]) == (precision == "fp16")
    steps = [record for record in map(json.loads, path.read_text().splitlines()) if record["record"] == "step"]
    assert [(step["skipped_steps"], step["overflow_parameter"]) for step in steps] == [
        (0, None),
        (1, "expand.1.weight"),
        (1, None),
    ]


# -- sums in fp32

ONE, SMALL = 1.0, 2.0**-10  # bf16 has 8 bits: 1 + 2^-10 is 1 in it


class Weighted(torch.nn.Module):
    """The gradient of its weight is the value it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(64))

    def forward(self, value: float) -> torch.Tensor:
        return (self.weight * value).sum().float()


def separate_backwards(engine: Any) -> None:
    engine.backward(engine(ONE), scale_wrt_gas=False)
    for _ in range(256):
        engine.backward(engine(SMALL), scale_wrt_gas=False)
    engine.step()


def raised_steps(engine: Any) -> None:
    engine.set_train_batch_size(engine.world_size * 257)
    for value in [ONE] + [SMALL] * 256:
        engine.backward(engine(value), scale_wrt_gas=False)
        engine.step()


def own_backwards(engine: Any) -> None:
    losses = [engine(value) for value in [ONE] + [SMALL] * 256]
    for loss in losses:
        loss.backward()
    engine.step()


@pytest.mark.parametrize("loop", [separate_backwards, raised_steps, own_backwards])
@pytest.mark.parametrize("world", [1, 2])
@STAGES
def test_gradients_that_add_up_do_so_in_fp32(stage: int, world: int, loop: Callable[[Any], None]):
    """Catches sums in bf16 where one accumulation step was configured, and more gradients arrive nevertheless: 1.000
    instead of 1.250."""
    config = config_of(stage, batch=world, clipping=0.0, bf16={"enabled": True})
    config["optimizer"] = {"type": "SGD", "params": {"lr": 1.0}}

    def run(rank: int, communicator: Any) -> float:
        engine, *_ = zeropage.initialize(model=Weighted(), config=config)
        loop(engine)
        return -flat_parameters(engine.module)[0].item()

    assert run_ranks(world, run) == [1.25] * world
