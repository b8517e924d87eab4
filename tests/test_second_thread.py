"""A second thread that evaluates the model of an engine while the first one trains it, at stage 3 on two ranks: it sees
values of some step, and neither of them waits for the other without end."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import zeropage
from zeropage.testing import run_ranks

PAGES, NUMEL, STEPS, RATE = 6, 512, 40, 0.25


class Levels(nn.Module):
    """Parameters that are all of one value, 1000 apart, each on its own page; every step takes RATE away."""

    def __init__(self):
        super().__init__()
        self.levels = nn.ParameterList(nn.Parameter(torch.full((NUMEL,), 1000.0 * k)) for k in range(PAGES))

    def forward(self) -> torch.Tensor:
        return sum(level.sum() for level in self.levels)


def assert_of_some_step(values: torch.Tensor, level: float, parameters: int = 1) -> None:
    """What was computed from so many parameters whose values were 1000 * level in the beginning."""
    down = 1000.0 * level - values
    assert down.min() >= 0 and down.max() <= RATE * STEPS * parameters, (level, values)


class Added(torch.autograd.Function):
    """Pages are pinned for as long as it runs, and operators in it pin others."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.stack([a, b]).sum(0) + 0 * a

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return gradient, gradient


def by_operator(levels: nn.ParameterList, k: int) -> None:
    with torch.no_grad():
        assert_of_some_step(torch.addcmul(levels[k], levels[-1], levels[0]) - 0 * levels[1], k, PAGES * 1000)
        assert_of_some_step(torch.stack(list(levels)).sum(0), sum(range(PAGES)), PAGES)


def by_function(levels: nn.ParameterList, k: int) -> None:
    assert_of_some_step(Added.apply(levels[k], levels[0]).detach(), k, 2)


def by_scope(levels: nn.ParameterList, k: int) -> None:
    """Memory that a program reads past the dispatcher."""
    with zeropage.zero.GatheredParameters([levels[k], levels[0]]):
        raw = [torch.from_numpy(levels[index].detach().numpy()) for index in (k, 0)]
        for _ in range(50):
            for values, level in zip(raw, (k, 0), strict=True):
                assert_of_some_step(values, level)


def by_compiled(levels: nn.ParameterList, k: int) -> None:
    compiled = torch.compile(lambda a, b: a + b, backend="eager")
    with torch.no_grad():
        assert_of_some_step(compiled(levels[k], levels[0]), k, 2)


@pytest.mark.parametrize("evaluate", [by_operator, by_function, by_scope, by_compiled])
def test_it_sees_values_of_some_step(evaluate: Callable[[nn.ParameterList, int], None]):
    """Catches an update that drops or reuses memory which the other thread reads, and threads that wait for each
    other: both would end in an error after the timeout."""
    torch._dynamo.reset()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "SGD", "params": {"lr": RATE}},
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zeropage": {"page_numel": NUMEL, "timeout_ms": 30_000},
    }

    def run(rank: int, _: Any) -> None:
        engine, *_ = zeropage.initialize(model=Levels(), config=config)
        ended, failures, passes = threading.Event(), [], [0]

        def evaluation() -> None:
            try:
                while not ended.is_set():
                    evaluate(engine.module.levels, passes[0] % PAGES)
                    passes[0] += 1
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=evaluation)
        thread.start()
        try:
            for _ in range(STEPS):
                with zeropage.zero.GatheredParameters(list(engine.module.parameters())[rank]):
                    engine.backward(engine())
                    engine.step()
        finally:
            ended.set()
            thread.join()
        if failures:
            raise failures[0]
        assert passes[0] > 0
        for k, level in enumerate(engine.module.levels):
            assert torch.equal(level.detach(), torch.full((NUMEL,), 1000.0 * k - RATE * STEPS))

    run_ranks(2, run)
