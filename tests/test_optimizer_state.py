"""State dicts of optimizers: PyTorch's form at every stage, to and from plain PyTorch, and what happens to
schedulers."""

import copy
from typing import Any

import pytest
import torch
from test_user_optimizers import assert_close, settings
from training import flat_parameters, part_of_batch, small_net, token_batch

import zeropage
from zeropage import errors
from zeropage.testing import run_ranks

MAKERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, eps=1e-4),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, eps=1e-4),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, eps=1e-4, momentum=0.9),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-3, eps=1e-4),
}


def plain(name: str, steps: int) -> tuple[Any, Any]:
    model = small_net()
    optimizer = MAKERS[name](model.parameters())
    train_plain(model, optimizer, range(steps))
    return model, optimizer


def train_plain(model: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(*token_batch(step)).backward()
        optimizer.step()


def on_ranks(name: str, stage: int, body: Any, model: Any = None) -> list[Any]:
    """body(engine, the user's optimizer, train) on two ranks; train(steps) updates."""
    model = small_net() if model is None else model

    def run(rank: int, communicator: Any) -> Any:
        own = copy.deepcopy(model)
        optimizer = MAKERS[name](own.parameters())
        engine = zeropage.initialize(model=own, optimizer=optimizer, config=settings(stage))[0]

        def train(steps: range) -> None:
            for step in steps:
                engine.backward(engine(*part_of_batch(token_batch(step), 2, rank)))
                engine.step()

        return body(engine, optimizer, train)

    return run_ranks(2, run)


def compare(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["param_groups"][0]["params"] == expected["param_groups"][0]["params"]
    assert found["state"].keys() == expected["state"].keys()
    for position, state in expected["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                assert found["state"][position][key].shape == value.shape, key
                # RMSprop divides each gradient by its size, so its buffer has the rounding of the smallest gradients.
                atol = max(1e-5, 5e-5 * value.abs().max().item())
                assert torch.allclose(found["state"][position][key], value, rtol=2e-3, atol=atol), key


@pytest.mark.parametrize("stage", (0, 1, 2, 3))
@pytest.mark.parametrize("name", MAKERS)
def test_state_dict_is_pytorchs(name, stage):
    """Catches a state dict without the moments, or with a rank's part of them, from the engine's optimizer or from the
    user's object."""

    def body(engine: Any, optimizer: Any, train: Any) -> Any:
        assert engine.optimizer.state_dict()["state"] == {}
        train(range(3))
        return engine.optimizer.state_dict(), optimizer.state_dict()

    expected = plain(name, 3)[1].state_dict()
    for found in on_ranks(name, stage, body):
        for each in found:
            compare(each, expected)


@pytest.mark.parametrize("name", MAKERS)
def test_training_continues_elsewhere(name):
    """Catches a state that is loaded into other elements, or not at all: stage 3 continues in plain PyTorch, and that
    at stage 2."""

    def half(engine: Any, optimizer: Any, train: Any) -> Any:
        train(range(2))
        return (
            engine.optimizer.state_dict(),
            flat_parameters(engine.module),
            train(range(2, 4)),
            flat_parameters(engine.module),
        )

    state, at_two, _, at_four = on_ranks(name, 3, half)[0]
    model = small_net()
    torch.nn.utils.vector_to_parameters(at_two, model.parameters())
    continued = copy.deepcopy(model)
    optimizer = MAKERS[name](continued.parameters())
    optimizer.load_state_dict(copy.deepcopy(state))
    train_plain(continued, optimizer, range(2, 4))
    assert_close(flat_parameters(continued), at_four)

    def load(engine: Any, optimizer: Any, train: Any) -> Any:
        optimizer.load_state_dict(copy.deepcopy(state))
        train(range(2, 4))
        return flat_parameters(engine.module)

    for stage in (0, 2):
        for parameters in on_ranks(name, stage, load, model):
            assert_close(parameters, at_four)


@pytest.mark.parametrize("name", ("AdamW", "RMSprop"))
def test_a_scheduler_still_drives_the_engine(name):
    """Catches groups that are exchanged by a load, so that a scheduler on the user's object sets rates without
    effect."""

    def body(engine: Any, optimizer: Any, train: Any) -> Any:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        train(range(1))
        rate = optimizer.param_groups[0]["lr"]
        optimizer.load_state_dict(engine.optimizer.state_dict())
        scheduler.step()
        return rate, engine.get_lr()[0], engine.optimizer.param_groups is optimizer.param_groups

    for rate, after, shared in on_ranks(name, 1, body):
        assert after == rate / 2 and shared


@pytest.mark.parametrize("name", ("AdamW", "NAdam"))
def test_the_state_of_another_model_is_refused(name):
    """Catches a state that is loaded in part before its shapes are checked."""

    def body(engine: Any, optimizer: Any, train: Any) -> None:
        train(range(1))
        state = engine.optimizer.state_dict()
        broken = copy.deepcopy(state)
        broken["state"][0]["exp_avg"] = torch.zeros(7)
        with pytest.raises(errors.UsageError, match=r"exp_avg.*\[7\]"):
            engine.optimizer.load_state_dict(broken)
        fewer = {**state, "param_groups": [{**state["param_groups"][0], "params": [0]}]}
        with pytest.raises(errors.UsageError, match="another model's or optimizer's"):
            engine.optimizer.load_state_dict(fewer)
        compare(engine.optimizer.state_dict(), state)

    on_ranks(name, 2, body)


@pytest.mark.parametrize("name", ("AdamW", "RMSprop"))
def test_hooks_of_state_dicts(name):
    """Catches hooks on the user's object that are not called, because the engine replaces it."""

    def body(engine: Any, optimizer: Any, train: Any) -> list[str]:
        train(range(1))
        called = []
        optimizer.register_state_dict_pre_hook(lambda each: called.append("before"))
        optimizer.register_state_dict_post_hook(lambda each, state: {**state, "more": 1})
        optimizer.register_load_state_dict_pre_hook(lambda each, state: called.append(str(state["more"])))
        optimizer.register_load_state_dict_post_hook(lambda each: called.append("after"))
        engine.optimizer.load_state_dict(optimizer.state_dict())
        return called

    for called in on_ranks(name, 2, body):
        assert called == ["before", "1", "after"]


def test_state_of_a_frozen_parameter_is_refused():
    """Catches moments that are forgotten since the layer is frozen in this run."""
    state = plain("AdamW", 2)[1].state_dict()
    without = {**state, "state": {position: each for position, each in state["state"].items() if position > 0}}

    def body(engine: Any, optimizer: Any, train: Any) -> None:
        train(range(1))
        before = optimizer.state_dict()
        with pytest.raises(errors.UsageError, match="parameter 0 of the optimizer is frozen"):
            optimizer.load_state_dict(copy.deepcopy(state))
        compare(optimizer.state_dict(), before)
        optimizer.load_state_dict(copy.deepcopy(without))
        compare(optimizer.state_dict(), without)

    model = small_net()
    next(model.parameters()).requires_grad_(False)
    on_ranks("AdamW", 1, body, model)
