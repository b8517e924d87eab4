"""Backwards that the program runs itself, `loss.backward()` and `engine.scale(loss).backward()`: `p.grad` is there when
they return, as after engine.backward(loss), and what is trained is what plain PyTorch trains."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
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

STAGES = pytest.mark.parametrize("stage", [0, 1, 2, 3])
PLACES = pytest.mark.parametrize(("stage", "world"), [(0, 2), (1, 2), (2, 2), (3, 2), (0, 1), (2, 1)])
CLIP = 0.1
NET = small_net()  # copied: torch's random generator is shared by ranks that are threads


def by_loss(engine: Any, loss: torch.Tensor) -> None:
    loss.backward()


def by_scale(engine: Any, loss: torch.Tensor) -> None:
    engine.scale(loss).backward()


def configuration(stage: int, accumulation: int = 1, **sections: Any) -> dict[str, Any]:
    return config_of(
        stage, clipping=0.0, accumulation=accumulation, eps=DAMPING_EPS, zeropage={"page_numel": 5000}, **sections
    )


def plain_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=DAMPING_EPS)


def plain_gradients(model: nn.Module, loss_of: Callable[[nn.Module], torch.Tensor]) -> list[torch.Tensor | None]:
    model = copy.deepcopy(model)
    loss_of(model).backward()
    return [p.grad for p in model.parameters()]


def plain_training(steps: int) -> tuple[torch.Tensor, list[float]]:
    """Clipped by torch's function on whole batches: parameters, and the norms that the function has found."""
    model = copy.deepcopy(NET)
    optimizer, norms = plain_optimizer(model), []
    for step in range(steps):
        optimizer.zero_grad()
        model(*token_batch(step)).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        optimizer.step()
    return flat_parameters(model), norms


def assert_gradients(model: nn.Module, expected: list[torch.Tensor | None], atol: float = 1e-6) -> None:
    for (name, p), gradient in zip(model.named_parameters(), expected, strict=True):
        assert (p.grad is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(
                p.grad.float(), gradient, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )


def forget(engine: Any) -> None:
    """Drops the gradients when no rank reads those of the others any more."""
    engine._communicator.barrier()
    engine.zero_grad()


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("backward", [by_loss, by_scale])
@PLACES
def test_torchs_clipping_sees_the_mean(stage: int, world: int, backward: Any, direct: bool):
    """Catches a p.grad that is None or one rank's own after the program's backward, at the end of a window, and one
    that is there within it.
    `direct`: the module is called without the engine, as C++ programs do."""
    steps, accumulation = 3, 2

    def run(rank: int, _: Any) -> Any:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(NET), config=configuration(stage, accumulation))
        norms = []
        for step in range(steps):
            for micro in range(accumulation):
                part = part_of_batch(token_batch(step), world, rank, micro, accumulation)
                backward(engine, (engine.module if direct else engine)(*part))
                if micro == 0:
                    assert all(p.grad is None for p in engine.module.parameters())
                else:
                    norms.append(torch.nn.utils.clip_grad_norm_(engine.module.parameters(), CLIP).item())
                engine.step()
                assert all(p.grad is None for p in engine.module.parameters())
        return flat_parameters(engine.module), norms

    expected, expected_norms = plain_training(steps)
    for parameters, norms in run_ranks(world, run):
        assert norms == pytest.approx(expected_norms, rel=1e-4)
        assert (parameters - expected).abs().max() < 3e-5


@STAGES
def test_fp16_by_scale(stage: int):
    """Catches a loss scale that is left in p.grad."""
    expected = plain_gradients(NET, lambda model: model(*token_batch(0)))

    def run(rank: int, _: Any) -> None:
        config = configuration(stage, 2, fp16={"enabled": True, "initial_scale_power": 10})
        engine, *_ = zeropage.initialize(model=copy.deepcopy(NET), config=config)
        for micro in range(2):
            by_scale(engine, engine(*part_of_batch(token_batch(0), 2, rank, micro, 2)))
            if micro == 0:
                engine.step()
        assert_gradients(engine.module, expected, atol=5e-3)
        with pytest.raises(UsageError, match="lack the loss scale"):
            by_loss(engine, engine(*part_of_batch(token_batch(0), 2, rank)))

    run_ranks(2, run)


@PLACES
def test_several_backwards_for_one_step(stage: int, world: int):
    """Catches a second backward that loses what was written into p.grad, or that autograd adds to the mean."""
    model = copy.deepcopy(NET)
    for turn in range(3):
        model(*token_batch(turn)).backward()
        torch._foreach_mul_([p.grad for p in model.parameters()], 0.5)
    expected = [p.grad for p in model.parameters()]

    def run(rank: int, _: Any) -> None:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(NET), config=configuration(stage))
        for turn in range(3):
            loss = engine(*part_of_batch(token_batch(turn), world, rank))
            engine.backward(loss) if turn == 1 else loss.backward()
            torch._foreach_mul_([p.grad for p in engine.module.parameters()], 0.5)
        assert_gradients(engine.module, expected)

    run_ranks(world, run)


class Checkpointed(nn.Module):
    """Three segments that autograd runs as backwards inside of a backward; `seen`: parameters with a p.grad while they
    are run again."""

    def __init__(self, all_inside: bool):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 1)
        self.all_inside = all_inside
        self.seen = 0

    def segment(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        self.seen += sum(p.grad is not None for p in self.parameters())
        return layer(x).tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_()
        for layer in self.layers:
            x = checkpoint(self.segment, layer, x, use_reentrant=True)
        return x.square().mean() if self.all_inside else self.head(x).square().mean()


@pytest.mark.parametrize("all_inside", [False, True])
@STAGES
def test_backwards_inside_of_a_backward(stage: int, all_inside: bool):
    """Catches the end of a reentrant checkpoint's segment that is taken for the end of the backward."""
    torch.manual_seed(1)
    model = Checkpointed(all_inside)
    x = torch.randn(4, 8)
    expected = plain_gradients(model, lambda model: model(x))

    def run(rank: int, _: Any) -> None:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=configuration(stage))
        for _ in range(2):
            engine(x.chunk(2)[rank].clone()).backward()
            assert engine.module.seen == 0
            assert_gradients(engine.module, expected)
            forget(engine)

    run_ranks(2, run)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor, branch: int) -> torch.Tensor:
        return self.branches[branch](x).tanh().square().mean()


@STAGES
def test_a_part_of_the_model_and_a_gradient_of_a_gradient(stage: int):
    """Catches ranks that wait for each other where each uses its own branch, torch.autograd.grad that counts as a
    backward, and second derivatives that are lost."""
    torch.manual_seed(0)
    model = Branches()
    x = torch.ones(4, 8)

    def penalized(model: nn.Module, branch: int, check: Callable[[], None] = lambda: None) -> torch.Tensor:
        inputs = x.clone().requires_grad_()
        loss = model(inputs, branch)
        (slope,) = torch.autograd.grad(loss, inputs, create_graph=True)
        check()
        return loss + slope.square().sum()

    expected = plain_gradients(model, lambda model: (penalized(model, 0) + penalized(model, 1)) / 2)

    def run(rank: int, _: Any) -> None:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=configuration(stage))

        def no_gradient() -> None:
            assert all(p.grad is None for p in engine.module.parameters())

        loss = penalized(engine, rank, no_gradient)
        loss.backward(retain_graph=True)
        assert_gradients(engine.module, expected)
        forget(engine)
        loss.backward(create_graph=True)
        assert_gradients(engine.module, expected)

    run_ranks(2, run)


@pytest.mark.parametrize("backward", [by_loss, by_scale, lambda engine, loss: engine.backward(loss)])
@STAGES
def test_an_error_inside_of_a_backward(stage: int, backward: Any):
    """Catches a backward that failed and is taken for the beginning of the next one."""
    expected = plain_gradients(NET, lambda model: model(*token_batch(1)))

    def fail(gradient: torch.Tensor) -> None:
        raise ValueError("in the middle")

    def run(rank: int, _: Any) -> None:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(NET), config=configuration(stage))
        handle = engine.module.contract[0].register_forward_hook(
            lambda module, inputs, output: output.register_hook(fail) and None
        )
        with pytest.raises(ValueError, match="in the middle"):
            backward(engine, engine(*part_of_batch(token_batch(0), 2, rank)))
        handle.remove()
        engine.zero_grad()
        by_loss(engine, engine(*part_of_batch(token_batch(1), 2, rank)))
        assert_gradients(engine.module, expected)
        engine.step()

    run_ranks(2, run)


@STAGES
def test_two_engines_in_one_backward(stage: int):
    """Catches a backward that ends for one of the engines only."""
    torch.manual_seed(0)
    models = [nn.Linear(8, 8), nn.Linear(8, 8)]
    x = torch.ones(4, 8)
    both = nn.ModuleList(copy.deepcopy(models))
    both[1](both[0](x)).square().mean().backward()
    expected = [[p.grad for p in model.parameters()] for model in both]

    def run(rank: int, _: Any) -> None:
        engines = [zeropage.initialize(model=copy.deepcopy(model), config=configuration(stage))[0] for model in models]
        for _ in range(2):
            engines[1](engines[0](x)).square().mean().backward()
            for engine, gradients in zip(engines, expected, strict=True):
                assert_gradients(engine.module, gradients)
                forget(engine)

    run_ranks(2, run)


def test_an_engine_that_ends_before_the_backward():
    """Catches callbacks that use an engine that does not exist any more."""
    engine, *_ = zeropage.initialize(model=copy.deepcopy(NET), config=configuration(2))
    module = engine.module
    loss = engine(*token_batch(0))
    engine.destroy()
    del engine
    loss.backward()
    assert_gradients(module, plain_gradients(NET, lambda model: model(*token_batch(0))))


def test_a_rank_whose_backward_reaches_no_parameter():
    """Catches ranks that wait without end for one that has no gradients in the first of two micro steps, or in the only
    one."""

    def run(rank: int, _: Any) -> torch.Tensor:
        model = Branches()
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.1)
        engine, *_ = zeropage.initialize(model=model, config=configuration(2, 2))
        for _ in range(2):
            for micro in range(2):
                if rank == 0 or micro == 0:
                    engine(torch.ones(4, 8), 0).backward()
                engine.step()
        return flat_parameters(model)

    ended = run_ranks(2, run)
    assert torch.equal(ended[0], ended[1])
