"""`p.grad` between the backward that completes an accumulation window and the step, against plain PyTorch in one
process."""

import copy
import threading
from typing import Any

import pytest
import torch
from torch import nn
from training import DAMPING_EPS, LEARNING_RATE, WEIGHT_DECAY, config_of, part_of_batch, small_net, token_batch

import zeropage
from zeropage import errors
from zeropage.testing import run_ranks

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 8}},
}
PLACES = [(0, 2), (1, 2), (2, 2), (3, 2), (0, 1), (2, 1)]
STEPS = 3


def plain_training(
    model: nn.Module, edit=lambda model, step: None, steps: int = STEPS, backwards: int = 1
) -> dict[str, torch.Tensor]:
    """AdamW on whole batches; `edit(model, step)` runs between the backward and the step."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=DAMPING_EPS)
    for step in range(steps):
        optimizer.zero_grad()
        for turn in range(backwards):
            model(*token_batch(step + 10 * turn)).backward()
            edit(model, step)
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


def engine_training(
    model, world, config, edit, steps: int = STEPS, backwards: int = 1, **faults
) -> list[dict[str, torch.Tensor]]:
    accumulation = config["gradient_accumulation_steps"]

    def run(rank, _):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config)
        parameters = list(engine.module.parameters())
        for step in range(steps):
            for micro in range(accumulation):
                for turn in range(backwards):
                    engine.backward(
                        engine(*part_of_batch(token_batch(step + 10 * turn), world, rank, micro, accumulation))
                    )
                    if micro + 1 == accumulation:
                        edit(engine.module, step)
                if micro + 1 < accumulation:
                    assert all(p.grad is None for p in parameters), "p.grad within a window"
                engine.step()
                assert all(p.grad is None for p in parameters), "p.grad after a step"
        return {name: p.detach().clone().float() for name, p in engine.module.named_parameters()}

    return run_ranks(world, run, **faults)


def assert_same(found: list[dict[str, torch.Tensor]], expected: dict[str, torch.Tensor], atol: float) -> None:
    for of_rank in found:
        for name, value in expected.items():
            torch.testing.assert_close(
                of_rank[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )


def configuration(stage: int, accumulation: int = 1, **sections):
    own = {"page_numel": 5000, **sections.pop("zeropage", {})}
    return config_of(stage, clipping=0.0, accumulation=accumulation, eps=DAMPING_EPS, zeropage=own, **sections)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("stage", "world"), PLACES)
def test_gradient_is_the_mean_in_the_type_of_the_parameter(stage, world, precision):
    """Catches sums, loss scales and ranks' own gradients where the mean is expected, and pages in wrong places."""
    plain = small_net()
    plain(*token_batch(0)).backward()
    model = small_net()

    def run(rank, _):
        engine, *_ = zeropage.initialize(
            model=copy.deepcopy(model), config=configuration(stage, 2, **PRECISIONS[precision])
        )
        for micro in range(2):
            assert all(p.grad is None for p in engine.module.parameters())
            engine.backward(engine(*part_of_batch(token_batch(0), world, rank, micro, 2)))
            if micro == 0:
                engine.step()
        for p in engine.module.parameters():
            assert (p.grad.shape, p.grad.dtype, p.grad.stride(), p.grad.requires_grad) == (
                p.shape,
                p.dtype,
                p.stride(),
                False,
            )
        vector = torch.nn.utils.parameters_to_vector([p.grad for p in engine.module.parameters()]).clone()
        assert torch.equal(vector, torch.cat([p.grad.flatten() for p in engine.module.parameters()]))
        return vector.float()

    expected = torch.cat([p.grad.flatten() for p in plain.parameters()])
    first, *others = run_ranks(world, run)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-6 if precision == "fp32" else 3e-2)
    assert all(torch.equal(first, other) for other in others)


def clip(model, step) -> None:
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    assert norm > 0.1


def clip_one_by_one(model, step) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1, foreach=False)


def write_in_place(model, step) -> None:
    model.tiny.grad.zero_()
    model.expand[0].weight.grad[3] = 0.25
    model.embedding.weight.grad.t().mul_(2)
    torch._foreach_mul_([p.grad for p in model.norms.parameters()], 0.5)


def assign(model, step) -> None:
    for index, p in enumerate(model.parameters()):
        if index % 2:
            p.grad = p.grad * 0.5 + p.detach()
        else:
            p.grad.data = p.grad.data * 0.25


def drop(model, step) -> None:
    if step == 1:
        model.expand[0].weight.grad = None
        model.tiny.grad = None
    if step == 2:
        model.norms[0].weight.grad = None


def importance(model, step) -> None:
    """As PEFT's AdaLoRA weighs its ranks, here with an effect on the gradient."""
    for p in model.parameters():
        p.grad.mul_((p * p.grad).abs().detach() > 1e-6)


def unscale(model, step) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    scaler.unscale_(optimizer)


EDITS = (clip, clip_one_by_one, write_in_place, assign, drop, importance, unscale)


@pytest.mark.parametrize(("stage", "world"), PLACES)
@pytest.mark.parametrize("edit", EDITS)
def test_writes_take_effect(edit, stage, world):
    """Catches writes to a gradient that the step does not use."""
    model = small_net()
    expected = plain_training(model, edit)
    assert_same(engine_training(model, world, configuration(stage), edit), expected, atol=3e-5)


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("precision", ("bf16", "fp16"))
def test_writes_take_effect_in_16_bit(precision, stage):
    """Catches a scale that is applied twice or not at all, and sums that lose their precision where nothing was
    written."""
    model = small_net()

    def touch_and_write(model, step):
        clip(model, step)
        write_in_place(model, step)

    config = configuration(stage, 2, **PRECISIONS[precision])
    found = engine_training(model, 2, config, touch_and_write)
    assert_same(found, plain_training(model, touch_and_write), atol=3e-2)
    only_read = engine_training(model, 2, config, lambda model, step: [p.grad.norm() for p in model.parameters()])
    untouched = engine_training(model, 2, config, lambda model, step: None)
    assert_same(only_read, untouched[0], atol=0)


@pytest.mark.parametrize("stage", (2, 3))
@pytest.mark.parametrize("place", ("cpu", "nvme", "few frames"))
def test_gradients_with_offload_or_few_frames(place, stage, tmp_path):
    """Catches updates that begin during the backward and use the gradient from before the program wrote it, drives that
    keep that old gradient, and memory of written gradients that is freed too early."""
    places: dict[str, dict[str, Any]] = {
        "cpu": {"offload_optimizer": {"device": "cpu"}},
        "nvme": {"offload_optimizer": {"device": "nvme", "nvme_path": str(tmp_path)}},
        "few frames": {"stage3_max_live_parameters": 1},
    }
    zero = places[place]
    if place == "nvme" and stage == 3:
        zero["offload_param"] = {"device": "nvme", "nvme_path": str(tmp_path)}
    model = small_net()

    def read_and_write(model, step):
        clip_one_by_one(model, step)
        write_in_place(model, step)

    config = configuration(
        stage, zero_optimization=zero, zeropage={"speculation_bytes": 1 << 24} if place == "cpu" else {}
    )
    assert_same(engine_training(model, 2, config, read_and_write), plain_training(model, read_and_write), atol=3e-5)


@pytest.mark.parametrize(("stage", "world"), PLACES)
def test_a_second_backward_adds_to_what_was_written(stage, world):
    """Catches p.grad that is still there when autograd accumulates, and writes that the second backward loses."""
    model = small_net()

    def halve(model, step):
        torch._foreach_mul_([p.grad for p in model.parameters()], 0.5)

    expected = plain_training(model, halve, backwards=2)
    assert_same(engine_training(model, world, configuration(stage), halve, backwards=2), expected, atol=3e-5)


@pytest.mark.parametrize(("stage", "world"), PLACES)
def test_kept_gradients_keep_their_values(stage, world):
    """Catches memory of the next window under a gradient that the program has kept: tensors, detached ones, and
    views."""

    def run(rank, _):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(small_net()), config=configuration(stage))
        kept, expected = [], []
        for step in range(3):
            engine.backward(engine(*part_of_batch(token_batch(step), world, rank)))
            p, q, r = engine.module.expand[0].weight, engine.module.tiny, engine.module.embedding.weight
            kept += [p.grad, q.grad.data.detach(), r.grad[2:4]]
            expected += [p.grad.clone(), q.grad.clone(), r.grad[2:4].clone()]
            engine.step()
        return all(torch.equal(a, b) for a, b in zip(kept, expected, strict=True)), len({x.data_ptr() for x in kept})

    assert run_ranks(world, run) == [(True, 9)] * world


class Branches(nn.Module):
    """Each rank uses its own branch, and none uses the last."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, branch: int):
        return self.branches[branch](x).square().mean()


@pytest.mark.parametrize("stage", range(4))
def test_gradient_is_there_where_any_rank_has_one(stage):
    """Catches ranks that disagree on which parameters have a gradient, so that norms differ."""
    torch.manual_seed(0)
    model = Branches()

    def run(rank, _):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=configuration(stage))
        engine.backward(engine(torch.ones(4, 8), rank))
        there = [p.grad is not None for p in engine.module.parameters()]
        return there, torch.nn.utils.clip_grad_norm_(engine.module.parameters(), 1e9).item()

    (model(torch.ones(4, 8), 0) / 2 + model(torch.ones(4, 8), 1) / 2).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
    assert run_ranks(2, run) == [([True] * 4 + [False] * 2, pytest.approx(norm, rel=1e-5))] * 2


def test_the_engines_clipping_and_norm_see_what_was_written():
    """Catches a norm of the gradient before it was written."""
    model = small_net()

    def run(rank, _):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config_of(2, clipping=1.0))
        engine.backward(engine(*part_of_batch(token_batch(0), 2, rank)))
        for p in engine.module.parameters():
            p.grad.fill_(0.5)
        engine.step()
        return engine.get_global_grad_norm()

    numel = sum(p.numel() for p in model.parameters())
    assert run_ranks(2, run) == [pytest.approx(0.5 * numel**0.5)] * 2


@pytest.mark.parametrize("stage", range(4))
def test_one_rank_alone_may_read(stage):
    """Catches a gather that needs all ranks although ranks can read each other's memory."""

    def read_on_rank_0(rank, _):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(small_net()), config=configuration(stage))
        norms = []
        for step in range(2):
            engine.backward(engine(*part_of_batch(token_batch(step), 2, rank)))
            if rank == 0:
                norms.append(torch.cat([p.grad.flatten() for p in engine.module.parameters()]).norm().item())
            engine.step()
            assert rank or norms[-1] == pytest.approx(engine.get_global_grad_norm(), rel=1e-5)

    run_ranks(2, read_on_rank_0)


def test_one_rank_alone_is_told_where_gradients_are_gathered():
    """Catches a rank that waits for ever, or an error without the reason."""

    def run(rank, _):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(small_net()), config=configuration(2))
        engine.backward(engine(*part_of_batch(token_batch(0), 2, rank)))
        if rank == 0:
            engine.module.tiny.grad.norm()
        else:
            threading.Event().wait(3)

    with pytest.raises(
        errors.TimeoutError, match="mean gradients of page .* all of them must touch gradients in the same order"
    ):
        run_ranks(2, run, timeout_s=4.0, two_sided=True)


def test_gradients_that_are_not_read_cost_nothing():
    """Catches frames, gathers and bytes for gradients that are never read."""

    def run(rank, communicator):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(small_net()), config=configuration(2))
        engine.backward(engine(*part_of_batch(token_batch(0), 2, rank)))
        before = engine._core.measured_bytes()["frames"][0]
        assert all(p.grad is not None for p in engine.module.parameters())
        untouched = engine._core.measured_bytes()["frames"][0] - before
        engine.module.tiny.grad.norm()
        return untouched, engine._core.measured_bytes()["frames"][0] - before > 0

    assert run_ranks(2, run) == [(0, True)] * 2
