"""`safe_get_*` and `safe_set_*`: values of parameters, gradients and optimizer state against plain PyTorch in one
process."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from training import LEARNING_RATE, WEIGHT_DECAY, config_of, part_of_batch, small_net, token_batch

import zeropage
from zeropage import errors, utils
from zeropage.testing import run_ranks

STATES = ("exp_avg", "exp_avg_sq")
SCALE = {"fp16": {"enabled": True, "initial_scale_power": 8}}
PRECISIONS: dict[str, dict[str, Any]] = {"fp32": {}, "bf16": {"bf16": {"enabled": True}}, "fp16": SCALE}


class Plain:
    """The same steps by torch, in fp32: whole batches are the mean over ranks and micro batches."""

    def __init__(self, model: nn.Module, make=torch.optim.AdamW):
        self.model = copy.deepcopy(model)
        self.optimizer = make(self.model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def backward(self, step: int) -> None:
        self.optimizer.zero_grad()
        self.model(*token_batch(step)).backward()

    def state(self, name: str, key: str) -> torch.Tensor:
        return self.optimizer.state[dict(self.model.named_parameters())[name]][key]


def backward(engine, rank: int, world: int, step: int, accumulation: int = 1) -> None:
    for micro in range(accumulation):
        engine.backward(engine(*part_of_batch(token_batch(step), world, rank, micro, accumulation)))
        if micro + 1 < accumulation:
            assert utils.safe_get_full_grad(next(engine.module.parameters())) is None
            engine.step()


def everything(model: nn.Module, get_state=utils.safe_get_full_optimizer_state) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: {"param": utils.safe_get_full_fp32_param(p), "grad": utils.safe_get_full_grad(p)}
        | {key: get_state(p, key) for key in STATES}
        for name, p in model.named_parameters()
    }


def present(value: torch.Tensor | None) -> torch.Tensor:
    """A value that must exist: the functions of `utils` return None where there is none."""
    assert value is not None
    return value


def configuration(stage: int, accumulation: int = 1, **sections):
    return config_of(stage, clipping=0.0, accumulation=accumulation, eps=1e-4, **sections)


def nvme(folder):
    return {"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": str(folder)}}}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("stage", "world"), [(0, 2), (1, 2), (2, 2), (3, 2), (0, 1), (3, 1)])
def test_full_values_are_those_of_plain_training(stage, world, precision):
    """Catches sums instead of means, a loss scale that is not removed, masters that are the rounded parameter, and
    pieces in wrong places."""
    plain = Plain(model := small_net())
    plain.optimizer.param_groups[0]["eps"] = 1e-4
    config = configuration(stage, accumulation=2, **PRECISIONS[precision])

    def run(rank, _):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config)
        seen = []
        for step in range(2):
            backward(engine, rank, world, step, accumulation=2)
            seen.append(everything(engine.module))
            engine.step()
        assert utils.safe_get_full_grad(next(engine.module.parameters())) is None
        return [*seen, everything(engine.module)]

    ranks = run_ranks(world, run)
    rough = dict(rtol=0, atol=2e-5) if precision == "fp32" else dict(rtol=0.1, atol=6e-2)
    for step in range(2):
        plain.backward(step)
        for name, p in plain.model.named_parameters():
            for found in (rank[step][name] for rank in ranks):
                assert found["grad"].dtype == found["param"].dtype == torch.float32
                torch.testing.assert_close(found["grad"], p.grad, **rough)
                assert (found["grad"] - p.grad).abs().mean() < 2e-3 + 0.01 * p.grad.abs().max()
                torch.testing.assert_close(found["param"], p.detach(), **(dict(rtol=0, atol=0) if step == 0 else rough))
        plain.optimizer.step()
    for name, p in plain.model.named_parameters():
        for found in (rank[2][name] for rank in ranks):
            assert all(torch.equal(found[key], ranks[0][2][name][key]) for key in (*STATES, "param"))
            assert found["grad"] is None
            torch.testing.assert_close(found["param"], p.detach(), rtol=0, atol=2e-5 if precision == "fp32" else 3e-2)
            for key in STATES:
                torch.testing.assert_close(found[key], plain.state(name, key), **rough)


def drawn(model: nn.Module, seed: int, keys) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: {key: torch.rand(p.shape, generator=generator) / 8 for key in keys}
        for name, p in model.named_parameters()
    }


SETTERS: dict[str, Callable[..., None]] = {
    "param": utils.safe_set_full_fp32_param,
    "grad": utils.safe_set_full_grad,
    **{key: partial(utils.safe_set_full_optimizer_state, optim_state_key=key) for key in STATES},
}


@pytest.mark.parametrize("place", ("device", "cpu", "nvme"))
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", range(4))
def test_what_is_set_is_read_and_used(stage, precision, place, tmp_path):
    """Catches values that are lost in a rounding, by the next step, or because another copy of them counts."""
    if place != "device" and stage in (0, 1) or (place == "nvme" and stage != 3):
        place = "device"
    world, model = 2, small_net()
    sections = {
        "device": {},
        "cpu": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
        "nvme": nvme(tmp_path),
    }[place]
    if place == "cpu":
        sections["zeropage"] = {"speculation_bytes": 1 << 24}
    values = drawn(model, 3, ("param", "grad", *STATES))
    kept_as = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    for kinds in values.values():  # stage 0 keeps gradients that do not add up in the type autograd made them in
        kinds["grad"] = kinds["grad"].to(kept_as).float()

    def run(rank, _):
        engine, *_ = zeropage.initialize(
            model=copy.deepcopy(model), config=configuration(stage, **PRECISIONS[precision], **sections)
        )
        engine.backward(engine(*part_of_batch(token_batch(0), world, rank)))
        for name, p in engine.module.named_parameters():
            for key, value in values[name].items():
                SETTERS[key](p, value)
        for name, kinds in everything(engine.module).items():
            for key, found in kinds.items():
                assert torch.equal(found, values[name][key]), (name, key)
        for name, p in engine.module.named_parameters():
            torch.testing.assert_close(p.detach().float(), values[name]["param"].to(p.dtype).float(), rtol=0, atol=0)
        engine.step()
        return everything(engine.module)

    outcomes = run_ranks(world, run)
    for name, given in values.items():
        p = nn.Parameter(given["param"].clone())
        p.grad = given["grad"].clone()
        optimizer = torch.optim.AdamW([p], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=1e-4)
        optimizer.state[p] = {"step": torch.tensor(0.0), **{key: given[key].clone() for key in STATES}}
        optimizer.step()
        for found in (outcome[name] for outcome in outcomes):
            torch.testing.assert_close(found["param"], p.detach(), rtol=0, atol=1e-5)
            for key in STATES:
                torch.testing.assert_close(found[key], optimizer.state[p][key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ("fp32", "bf16"))
@pytest.mark.parametrize("stage", range(4))
def test_local_values_are_the_parts_of_full_ones(stage, precision):
    """Catches local pieces of another rank, in another order, or whose change the full value does not show."""
    world, model = 2, small_net()

    def run(rank, _):
        engine, *_ = zeropage.initialize(
            model=copy.deepcopy(model), config=configuration(stage, **PRECISIONS[precision])
        )
        engine.backward(engine(*part_of_batch(token_batch(0), world, rank)))
        pieces = []
        for p in engine.module.parameters():
            utils.safe_set_local_fp32_param(p, present(utils.safe_get_local_fp32_param(p)) + 1)
            utils.safe_set_local_grad(p, present(utils.safe_get_local_grad(p)) * 2)
            for key in STATES:
                moment = present(utils.safe_get_local_optimizer_state(p, key))
                utils.safe_set_local_optimizer_state(p, moment + 3, key)
            pieces.append(
                [
                    utils.safe_get_local_fp32_param(p),
                    utils.safe_get_local_grad(p),
                    utils.safe_get_local_optimizer_state(p, "exp_avg"),
                ]
            )
        return pieces, everything(engine.module)

    ranks = run_ranks(world, run)
    for index, (name, p) in enumerate(model.named_parameters()):
        full = ranks[0][1][name]
        for position, key in enumerate(("param", "grad", "exp_avg")):
            parts = [pieces[index][position] for pieces, _ in ranks]
            whole = parts[0] if stage == 0 else torch.cat(parts)
            torch.testing.assert_close(whole, full[key].flatten(), rtol=0, atol=0)
        torch.testing.assert_close(full["param"], p.detach() + 1, rtol=0, atol=0)
        torch.testing.assert_close(full["exp_avg"], torch.full_like(p, 3.0), rtol=0, atol=0)


def test_a_users_write_counts_before_the_next_step():
    """Catches a master that is read while the 16-bit parameter has another value, on resident, absent and whole
    pages."""

    def run(rank, _):
        config = configuration(3, **PRECISIONS["bf16"], zeropage={"page_numel": 1})
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config)
        with torch.no_grad():
            engine.module.expand[0].weight[0].fill_(0.5)
        return utils.safe_get_full_fp32_param(engine.module.expand[0].weight)

    model = small_net()
    expected = model.expand[0].weight.detach().clone()
    expected[0] = 0.5
    for found in run_ranks(2, run):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("stage", range(4))
def test_state_of_an_optimizer_of_torch(stage):
    """Catches states of an optimizer object that are searched in the engine, or read from one rank's elements alone."""
    model = small_net()
    plain = Plain(model, torch.optim.NAdam)
    plain.backward(0)
    plain.optimizer.step()
    config = {key: value for key, value in configuration(stage).items() if key != "optimizer"}

    def run(rank, _):
        mine = copy.deepcopy(model)
        optimizer = torch.optim.NAdam(mine.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        engine, *_ = zeropage.initialize(model=mine, optimizer=optimizer, config=config)
        p = engine.module.expand[0].weight
        engine.backward(engine(*part_of_batch(token_batch(0), 2, rank)))
        assert utils.safe_get_full_optimizer_state(p, "exp_avg") is None
        engine.step()
        found = present(utils.safe_get_full_optimizer_state(p, "exp_avg"))
        utils.safe_set_full_optimizer_state(p, found * 2, "exp_avg")
        return found, utils.safe_get_full_optimizer_state(p, "exp_avg")

    for found, doubled in run_ranks(2, run):
        torch.testing.assert_close(found, plain.state("expand.0.weight", "exp_avg"), rtol=0, atol=1e-6)
        assert torch.equal(doubled, found * 2)


def test_vectorized_update_of_gradients():
    """Catches an update function that is given pieces, or whose result the step does not use."""
    model = small_net()
    plain = Plain(model)
    plain.backward(0)
    for p in plain.model.parameters():
        p.grad.add_(p.detach(), alpha=0.1)
    plain.optimizer.step()

    def run(rank, _):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config_of(2, clipping=0.0))
        engine.backward(engine(*part_of_batch(token_batch(0), 2, rank)))
        utils.safe_update_full_grad_vectorized(
            list(engine.module.parameters()), lambda gradient, p: gradient + 0.1 * p.detach()
        )
        engine.step()
        return [p.detach().clone() for p in engine.module.parameters()]

    for found in run_ranks(2, run):
        for ours, theirs in zip(found, plain.model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=2e-5)


def test_norm_and_clipping_follow_a_gradient_that_was_set():
    """Catches a norm of gradients that are no longer there."""
    model = small_net()

    def run(rank, _):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config_of(2, clipping=1.0))
        engine.backward(engine(*part_of_batch(token_batch(0), 2, rank)))
        for p in engine.module.parameters():
            utils.safe_set_full_grad(p, torch.full_like(p, 0.5))
        engine.step()
        return engine.get_global_grad_norm()

    numel = sum(p.numel() for p in model.parameters())
    assert run_ranks(2, run) == [pytest.approx(0.5 * numel**0.5)] * 2


def test_what_cannot_be_read_or_set_is_an_error():
    """Catches missing errors for parameters that are not the engine's, unknown states, frozen parameters, and calls
    within a window."""
    model = small_net()
    model.embedding.weight.requires_grad_(False)
    engine, *_ = zeropage.initialize(model=model, config=configuration(2, accumulation=2))
    frozen, trained = model.embedding.weight, model.tiny
    assert utils.safe_get_full_fp32_param(frozen) is None
    assert utils.safe_get_full_grad(frozen) is None
    assert utils.safe_get_local_optimizer_state(frozen, "exp_avg") is None
    with pytest.raises(errors.UsageError, match=r"'embedding\.weight' is not trained"):
        utils.safe_set_full_fp32_param(frozen, torch.zeros(50, 64))
    with pytest.raises(errors.UsageError, match="has no elementwise state 'momentum'.*'exp_avg', 'exp_avg_sq'"):
        utils.safe_get_full_optimizer_state(trained, "momentum")
    with pytest.raises(errors.UsageError, match=r"shape, \[3\]; got \[2\]"):
        utils.safe_set_full_fp32_param(trained, torch.zeros(2))
    with pytest.raises(errors.UsageError, match="expected a parameter of a model"):
        utils.safe_get_full_fp32_param(nn.Parameter(torch.zeros(3)))
    backward(engine, 0, 1, 0)
    with pytest.raises(errors.UsageError, match="'tiny' can be set between the backward that completes"):
        utils.safe_set_full_grad(trained, torch.zeros(3))
