"""Backwards that the program runs itself, at stages 0 to 3 and with a loss scale: gradients are those of plain PyTorch
in one process."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from training import config_of, part_of_batch, small_net, token_batch

import zeropage
from zeropage.compat.leaf_modules import set_z3_leaf_modules
from zeropage.testing import run_ranks
from zeropage.utils import safe_get_full_grad, safe_get_full_model_grads

WORLD = 2
FP16: dict[str, Any] = {"fp16": {"enabled": True, "initial_scale_power": 8}}


def same_on_all_ranks(found: list[Any], expected: dict[str, torch.Tensor], within: float = 1e-6) -> None:
    for rank in found:
        assert rank.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                rank[name], value, rtol=within, atol=within, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("stage", range(4))
def test_one_loss_of_several_models_in_fp16(stage: int, models: int):
    """Catches losses of modules that are called without their engines, so that nothing scales them, being refused, or
    gradients that are smaller by the loss scale."""
    plain = [small_net(seed) for seed in range(models)]
    expected = [copy.deepcopy(model) for model in plain]
    sum(model(*token_batch(0)) / (i + 1) for i, model in enumerate(expected)).backward()
    given = [copy.deepcopy(plain) for _ in range(WORLD)]

    def run(rank: int, _: Any) -> list[dict[str, torch.Tensor]]:
        engines = [zeropage.initialize(model=model, config=config_of(stage, **FP16))[0] for model in given[rank]]
        batch = part_of_batch(token_batch(0), WORLD, rank)
        sum(engine.module(*batch) / (i + 1) for i, engine in enumerate(engines)).backward()
        found = [safe_get_full_model_grads(engine.module) for engine in engines]
        for engine in engines:
            engine._backward_epilogue()
            engine.step()
            assert engine.was_step_applied()
            engine.destroy()
        return found

    ranks = run_ranks(WORLD, run)
    for i, model in enumerate(expected):
        same_on_all_ranks(
            [rank[i] for rank in ranks], {name: p.grad for name, p in model.named_parameters()}, within=1e-2
        )


@pytest.mark.parametrize("stage", range(4))
def test_a_loss_of_the_engine_must_be_scaled(stage: int):
    """Catches fp16 losses of the engine whose gradients vanish because the program forgot the loss scale."""
    engine, *_ = zeropage.initialize(model=small_net(), config=config_of(stage, **FP16))
    assert engine.optimizer.needs_scaler()
    with pytest.raises(RuntimeError, match="Loss scaling is required"):
        engine(*token_batch(0)).backward()
    engine.zero_grad()
    engine.scale(engine(*token_batch(0))).backward()
    engine.step()
    assert engine.was_step_applied()
    with pytest.raises(AssertionError, match="scalar tensor"):
        engine.scale(torch.ones(2, requires_grad=True))


class TwoLosses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("way", ["backward", "scale"])
@pytest.mark.parametrize("stage", range(4))
def test_two_losses_of_one_forward(stage: int, way: str):
    """Catches gradients of a first loss that are part of a second one's, though zero_grad is called between them."""
    torch.manual_seed(1)
    model, x, targets = TwoLosses(), torch.randn(4, 4), torch.randint(4, (2, 4))
    expected = []
    for target in targets:
        plain = copy.deepcopy(model)
        F.cross_entropy(plain(x), target).backward()
        expected.append({name: p.grad for name, p in plain.named_parameters()})
    given = [copy.deepcopy(model) for _ in range(WORLD)]

    def run(rank: int, _: Any) -> list[dict[str, torch.Tensor]]:
        engine, *_ = zeropage.initialize(model=given[rank], config=config_of(stage, batch=4))
        out = engine(x.chunk(WORLD)[rank])
        found = []
        for last, target in enumerate(targets):
            loss = F.cross_entropy(out, target.chunk(WORLD)[rank])
            engine.zero_grad()
            if way == "backward":
                engine.backward(loss, retain_graph=not last)
            else:
                engine.scale(loss, retain_graph=not last).backward(retain_graph=not last)
            found.append(safe_get_full_model_grads(engine.module))
        engine.step()
        return found

    ranks = run_ranks(WORLD, run)
    for index in range(2):
        same_on_all_ranks([rank[index] for rank in ranks], expected[index])


class Checkpointed(nn.Module):
    """A frozen norm and a trained layer are computed again in the backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.norm, self.inner, self.outer = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(checkpoint(lambda y: self.inner(self.norm(y)).relu(), x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("stage", range(4))
def test_a_backward_of_a_tensor_through_a_checkpoint(stage: int, reentrant: bool):
    """Catches gradients of out.backward(gradient) that are lost, or reduced twice, with a frozen parameter in a
    checkpoint."""
    torch.manual_seed(2)
    model, inputs = Checkpointed(reentrant), torch.randn(2, 4, 8)
    plain = copy.deepcopy(model)
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-2)
    expected = []
    for x in inputs:
        optimizer.zero_grad()
        plain(x.clone().requires_grad_()).backward(torch.full((4, 8), 0.25))
        expected.append({name: p.grad.clone() for name, p in plain.named_parameters() if p.requires_grad})
        optimizer.step()
    given = [copy.deepcopy(model) for _ in range(WORLD)]
    config = config_of(stage, batch=4, clipping=0.0)
    config["optimizer"]["params"]["weight_decay"] = 0.01

    def run(rank: int, _: Any) -> list[dict[str, torch.Tensor]]:
        mine = given[rank]
        engine, *_ = zeropage.initialize(
            model=mine, model_parameters=[p for p in mine.parameters() if p.requires_grad], config=config
        )
        found = []
        for x in inputs:
            part = x.chunk(WORLD)[rank].clone().requires_grad_()
            engine(part).backward(torch.full((2, 8), 0.5))  # the mean of two ranks
            found.append(safe_get_full_model_grads(engine.module))
            engine.step()
        return found

    ranks = run_ranks(WORLD, run)
    for step, gradients in enumerate(expected):
        same_on_all_ranks([rank[step] for rank in ranks], gradients, within=1e-5)


@pytest.mark.parametrize("stage", range(4))
def test_windows_of_backwards_without_a_step(stage: int):
    """Catches gradients that cannot be read between the backwards of a no_sync block, or that zero_grad does not
    clear."""
    given = [small_net() for _ in range(WORLD)]

    def run(rank: int, _: Any) -> list[list[float]]:
        engine, *_ = zeropage.initialize(model=given[rank], config=config_of(stage))
        windows = []
        for _ in range(2):
            engine.zero_grad()
            norms = []
            with engine.no_sync():
                for step in range(3):
                    engine.backward(engine(*part_of_batch(token_batch(step), WORLD, rank)))
                    gradients = [safe_get_full_grad(p) for p in engine.module.parameters()]
                    norms.append(sum(gradient.norm().item() for gradient in gradients if gradient is not None))
            windows.append(norms)
        return windows

    for first, second in run_ranks(WORLD, run):
        assert first == second and len(set(first)) == 3


@pytest.mark.parametrize("precision", [{}, {"bf16": {"enabled": True}}, FP16])
@pytest.mark.parametrize("stage", range(4))
def test_parameters_that_are_frozen_by_turns(stage: int, precision: dict[str, Any]):
    """Catches an engine that waits for, or updates, a parameter that has no gradient in this step but in the next
    one."""
    engine, *_ = zeropage.initialize(model=small_net(), config=config_of(stage, batch=2, accumulation=2, **precision))

    for step in range(2):
        values = [parameter.detach().clone() for parameter in engine.parameters()]
        for index, parameter in enumerate(engine.parameters()):
            parameter.requires_grad = index % 2 == step
        for _ in range(2):
            engine.backward(engine(*token_batch(step, size=1)))
            engine.step()
        assert engine.was_step_applied()
        changed = [
            not torch.equal(parameter.detach(), value)
            for parameter, value in zip(engine.parameters(), values, strict=True)
        ]
        assert changed == [index % 2 == step for index in range(len(values))]
        engine.module.requires_grad_(True)


def test_modules_that_are_leaves_are_listed():
    """Catches set_z3_leaf_modules whose marks an optimizer of stage 3 does not show."""
    model = nn.Sequential(nn.ModuleList([nn.Linear(2, 2)]), nn.Linear(2, 2))
    (leaf,) = set_z3_leaf_modules(model, [nn.ModuleList])
    engine, *_ = zeropage.initialize(model=model, config=config_of(3, batch=1))
    assert engine.optimizer.leaf_parameters == {leaf: list(leaf.parameters())}
