"""Behaviour that programs written for DeepSpeed rely on outside the loop: schedules, several engines under one loss,
no_sync, attributes of parameters, errors."""

import copy
import math

import pytest
import torch
from torch import nn
from training import config_of, flat_parameters, part_of_batch, small_net, token_batch

import zeropage
from zeropage.compat import parameter_view
from zeropage.compat.zero_names import ZeroParamStatus
from zeropage.errors import UsageError
from zeropage.lr_schedules import LRRangeTest, OneCycle, WarmupCosineLR, WarmupDecayLR, WarmupLR
from zeropage.testing import run_ranks

WORLD = 2


def rates_of(make, steps: int, rate: float = 0.5) -> list[float]:
    """The rate of each training step under a schedule of one group."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=rate)
    schedule = make(optimizer)
    rates = []
    for _ in range(steps):
        assert schedule.get_lr() == schedule.get_last_lr() == [optimizer.param_groups[0]["lr"]]
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    return rates


def test_schedules_that_programs_make():
    """Catches a schedule class whose rates differ from its documented formula, or that does not set them."""
    assert rates_of(lambda o: WarmupLR(o, 0.0, 0.1, 4, "linear"), 7) == pytest.approx(
        [0, 0, 0.025, 0.05, 0.075, 0.1, 0.1]
    )
    assert rates_of(lambda o: WarmupLR(o, 0.0, None, 4, "linear"), 6) == pytest.approx([0, 0, 0.125, 0.25, 0.375, 0.5])
    assert rates_of(lambda o: WarmupLR(o, 0.0, 0.1, 4), 5) == pytest.approx(
        [0, *[0.1 * math.log(i + 1) / math.log(4) for i in range(4)]]
    )
    assert rates_of(lambda o: WarmupDecayLR(o, 8, 0.0, 0.1, 4, "linear"), 9)[5:] == pytest.approx(
        [0.1, 0.075, 0.05, 0.025]
    )
    cosine = rates_of(lambda o: WarmupCosineLR(o, 8, 0.0, 4, 0.0, "linear"), 9)
    assert cosine[:5] == pytest.approx([0, 0, 0.125, 0.25, 0.375]) and cosine[8] == pytest.approx(0.0, abs=1e-9)
    assert rates_of(lambda o: OneCycle(o, 0.0, 0.1, cycle_first_step_size=2), 5) == pytest.approx(
        [0, 0.05, 0.1, 0.05, 0]
    )
    assert rates_of(lambda o: LRRangeTest(o, 0.1, 2, 1.0), 3) == pytest.approx([0.1, 0.15, 0.2])
    assert rates_of(lambda o: LRRangeTest(o, 0.1, 2, 1.0, True), 3) == pytest.approx([0.1, 0.1, 0.2])


def test_schedules_have_groups_momenta_and_a_state():
    """Catches bounds of one group that are used for another, a cycle that does not change the momentum, and a schedule
    that cannot be resumed."""
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    optimizer = torch.optim.AdamW([{"params": first.parameters()}, {"params": second.parameters()}], lr=1.0)
    schedule = WarmupLR(optimizer, [0.0, 0.5], [0.1, 0.7], 2, "linear")
    schedule.step(5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.7])
    later = WarmupLR(optimizer, [0.0, 0.5], [0.1, 0.7], 2, "linear")
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.5]
    later.load_state_dict(schedule.state_dict())
    assert later.last_batch_iteration == 5 and later.get_lr() == schedule.get_lr()
    OneCycle(optimizer, 0.0, 0.1, cycle_first_step_size=2, cycle_min_mom=0.8, cycle_max_mom=0.95).step()
    assert [group["betas"] for group in optimizer.param_groups] == [(pytest.approx(0.875), 0.999)] * 2
    with pytest.raises(ValueError, match="warmup_type.*cubic"):
        WarmupLR(optimizer, warmup_type="cubic")
    with pytest.raises(ValueError, match="warmup_max_lr has 3 values for 2 parameter groups"):
        WarmupLR(optimizer, warmup_max_lr=[1.0, 2.0, 3.0])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_schedule_of_the_program_drives_the_engine(stage):
    """Catches a schedule on the program's optimizer whose rates do not reach the update."""
    expected = small_net()
    optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-2)
    schedule = WarmupLR(optimizer, 0.0, 1e-2, 2, "linear")
    for step in range(4):
        optimizer.zero_grad()
        expected(*token_batch(step)).backward()
        optimizer.step()
        schedule.step()
    models = [small_net() for _ in range(WORLD)]
    config = {key: value for key, value in config_of(stage).items() if key not in ("optimizer", "gradient_clipping")}

    def run(rank, communicator):
        mine = torch.optim.AdamW(models[rank].parameters(), lr=1e-2)
        scheduler = WarmupLR(mine, 0.0, 1e-2, 2, "linear")
        engine, *_ = zeropage.initialize(model=models[rank], optimizer=mine, lr_scheduler=scheduler, config=config)
        for step in range(4):
            engine.backward(engine(*part_of_batch(token_batch(step), WORLD, rank)))
            engine.step()
        return flat_parameters(engine.module), engine.get_lr()

    for parameters, rates in run_ranks(WORLD, run):
        torch.testing.assert_close(parameters, flat_parameters(expected), rtol=2e-5, atol=2e-5)
        assert rates == pytest.approx([1e-2])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_several_engines_under_one_loss(stage):
    """Catches gradients that reach another engine, or are not reduced, when one backward of the program runs through
    several models."""
    plain = [small_net(seed) for seed in range(3)]
    expected = copy.deepcopy(plain)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01) for model in expected]
    for step in range(2):
        sum(model(*token_batch(step)) / (i + 1) for i, model in enumerate(expected)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    models = [copy.deepcopy(plain) for _ in range(WORLD)]
    config = config_of(stage)
    del config["gradient_clipping"]

    def run(rank, communicator):
        engines = [zeropage.initialize(model=model, config=config)[0] for model in models[rank]]
        for step in range(2):
            batch = part_of_batch(token_batch(step), WORLD, rank)
            sum(engine.module(*batch) / (i + 1) for i, engine in enumerate(engines)).backward()
            for engine in engines:
                engine._backward_epilogue()
            for engine in engines:
                engine.step()
                engine.optimizer.zero_grad()
        found = [flat_parameters(engine.module) for engine in engines]
        for engine in engines:
            engine.destroy()
        return found

    for found in run_ranks(WORLD, run):
        for parameters, model in zip(found, expected, strict=True):
            torch.testing.assert_close(parameters, flat_parameters(model), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_no_sync_refuses_what_it_does_not_allow(stage):
    """Catches a step that runs on part of a window's gradients, and a block that is not left after an error in it."""
    engine, *_ = zeropage.initialize(
        model=nn.Linear(2, 2), config={**config_of(stage), "train_batch_size": 2, "gradient_accumulation_steps": 2}
    )
    for _ in range(2):
        with (
            pytest.raises(AssertionError, match=r"It is illegal to call Engine.step\(\) inside no_sync"),
            engine.no_sync(),
        ):
            engine.step()
    with engine.no_sync(), pytest.raises(AssertionError, match="no_sync context manager reentry"), engine.no_sync():
        pass
    before = flat_parameters(engine.module)
    with engine.no_sync():
        engine.backward(engine(torch.ones(1, 2)).sum())
    engine.step()
    engine.backward(engine(torch.ones(1, 2)).sum())
    engine.step()
    assert engine.global_steps == 1 and not torch.equal(before, flat_parameters(engine.module))


def test_attributes_of_parameters():
    """Catches parts of ranks that together are not the parameter, and a parameter that is reported as kept or resident
    when it is not."""
    parameter_view.install()
    models = [nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 1)) for _ in range(WORLD)]
    models[1].load_state_dict(models[0].state_dict())
    expected = [parameter.detach().clone() for parameter in models[0].parameters()]

    def run(rank, communicator):
        config = config_of(
            3, zero_optimization={"stage3_param_persistence_threshold": 64, "stage3_max_live_parameters": 0}
        )
        models[rank][1].weight.requires_grad_(False)
        engine, *_ = zeropage.initialize(model=models[rank], config=config)
        engine.empty_partition_cache()
        weight = models[rank][0].weight
        seen = [weight.ds_status]
        weight.all_gather()
        seen.append(weight.ds_status)
        weight.partition()
        parameters = list(models[rank].parameters())
        persist = [parameter.ds_persist for parameter in parameters]
        shapes = [(parameter.ds_shape, parameter.ds_numel) for parameter in parameters]
        return seen, persist, shapes, [(parameter.ds_tensor, parameter.ds_tensor.ds_numel) for parameter in parameters]

    results = run_ranks(WORLD, run)
    for seen, persist, shapes, _ in results:
        assert seen == [ZeroParamStatus.NOT_AVAILABLE, ZeroParamStatus.AVAILABLE]
        assert persist == [False, True, True, True]
        assert shapes == [(value.shape, value.numel()) for value in expected]
    for index, value in enumerate(expected):
        parts = [result[3][index] for result in results]
        assert torch.equal(torch.cat([part for part, _ in parts]), value.flatten())
        assert all(part.numel() == numel for part, numel in parts)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_an_engine_without_an_optimizer(stage):
    """Catches hooks that a library cannot remove from a reference model of stage 3 and add again, and an optimizer
    without effect."""
    config = {key: value for key, value in config_of(stage).items() if key != "optimizer"}
    model = nn.Linear(2, 2)
    expected = model(torch.ones(1, 2))
    engine, optimizer, _, scheduler = zeropage.initialize(model=model, config=config)
    assert optimizer is engine.optimizer and scheduler is None
    if stage < 3:
        assert optimizer is None
    else:
        assert optimizer.forward_hooks == optimizer.backward_hooks == []
        assert optimizer.module.weight is model.weight
        optimizer._register_deepspeed_module(optimizer.module)
    torch.testing.assert_close(engine(torch.ones(1, 2)), expected)
    engine.print_memory_table()


def test_errors_are_what_scripts_expect():
    """Catches a refusal that `except AssertionError`, `except ValueError` or `except RuntimeError` of a program
    misses."""
    with pytest.raises(AssertionError, match="torch.nn.Module, got NoneType"):
        zeropage.initialize(model=None, config=config_of(0))
    with pytest.raises(AssertionError, match="expected one of config"):
        zeropage.initialize(model=nn.Linear(1, 1))
    for kind in (AssertionError, ValueError, RuntimeError):
        with pytest.raises(kind, match="train_batch_size"):
            zeropage.initialize(model=nn.Linear(1, 1), config={"train_batch_size": 3, "gradient_accumulation_steps": 2})
    engine, *_ = zeropage.initialize(model=nn.Linear(2, 2), config={**config_of(0), "train_batch_size": 1})
    with pytest.raises(RuntimeError, match="scalar tensor"):
        engine.scale(torch.ones(2, requires_grad=True))
    with pytest.raises(UsageError):
        engine.backward(torch.ones(2, requires_grad=True))
