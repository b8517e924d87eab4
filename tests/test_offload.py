"""Offload to the host: the same bits as without it, and bytes as in the formula."""

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn
from training import (
    Outcome,
    config_of,
    interrupted_run,
    part_of_batch,
    small_net,
    token_batch,
    train_engine,
    train_ranks,
)

import zeropage
from zeropage import errors
from zeropage.testing import run_ranks

STEPS = 12
KINDS = ("parameters", "gradients", "optimizer")
# A page per parameter, so that a ratio has something to choose from and stage 3 evicts.
PAGED: dict[str, Any] = {"zeropage": {"page_numel": 1}, "zero_optimization": {"stage3_max_live_parameters": 4096}}
OPTIMIZER = {"offload_optimizer": {"device": "cpu"}}
PARAMETERS = {"offload_param": {"device": "cpu"}}
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    # The first scales overflow, so that steps are skipped at the beginning.
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 20, "hysteresis": 1}},
}


def ratio(share: float) -> dict[str, Any]:
    return {"offload_optimizer": {"device": "cpu", "ratio": share}}


def config(stage: int, offload: dict[str, Any], **options: Any) -> dict[str, Any]:
    sections = copy.deepcopy(PAGED)
    sections["zero_optimization"] |= copy.deepcopy(offload)
    return config_of(stage, **sections, **options)


@functools.cache
def without_offload(stage: int, world: int, precision: str, accumulation: int) -> Outcome:
    options = copy.deepcopy(PRECISIONS[precision]) | {"accumulation": accumulation}
    return train_ranks(small_net(), world, config(stage, {}, **options), STEPS)[0]


def assert_same_run(
    stage: int, world: int, offload: dict[str, Any], precision: str = "fp32", accumulation: int = 1
) -> Outcome:
    expected = without_offload(stage, world, precision, accumulation)
    options = copy.deepcopy(PRECISIONS[precision]) | {"accumulation": accumulation}
    found = train_ranks(small_net(), world, config(stage, offload, **options), STEPS)[0]
    difference = (found.parameters - expected.parameters).abs().max().item()
    assert torch.equal(found.parameters, expected.parameters), f"differ by {difference:.3g}"
    assert (found.losses, found.applied, found.loss_scales) == (expected.losses, expected.applied, expected.loss_scales)
    return found


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_optimizer_on_the_host_changes_no_bit(stage: int, world: int, share: float):
    """Catches pages that are updated from the wrong memory, twice, or with another page's gradient."""
    assert_same_run(stage, world, ratio(share))


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("offload", [PARAMETERS, PARAMETERS | OPTIMIZER, PARAMETERS | ratio(0.5)])
def test_parameters_on_the_host_change_no_bit(world: int, offload: dict[str, Any]):
    """Catches gathers from the wrong shard, and shards rewritten while they are read."""
    found = assert_same_run(3, world, offload)
    assert found.pager.evictions > 0, "nothing was ever evicted"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("stage", "offload"), [(0, OPTIMIZER), (1, OPTIMIZER), (2, ratio(0.5)), (3, OPTIMIZER | PARAMETERS)]
)
def test_low_precision_and_skipped_steps(stage: int, offload: dict[str, Any], precision: str):
    """Catches masters that are not on the host with their moments, and a skipped step that changes something."""
    found = assert_same_run(stage, 2, offload, precision)
    assert (False in found.applied) == (precision == "fp16") and True in found.applied


@pytest.mark.parametrize("stage", [1, 2])
def test_accumulated_gradients_on_the_host(stage: int):
    """Catches a second micro batch that replaces the first one's gradients on the host."""
    assert_same_run(stage, 2, OPTIMIZER, accumulation=2)


class Tiny(nn.Module):
    """Three layers of 16 x 16, quick enough for hundreds of steps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3)))

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """tokens, targets [B, T] -> a mean square."""
        return (
            (self.layers((tokens[:, :1] + torch.arange(16)).float().sin()) - targets[:, :1].float().cos())
            .square()
            .mean()
        )


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_200_steps_at_any_number_of_threads(stage: int):
    """Catches drift that a few steps do not show, and results that depend on how an update is split."""

    def run(offload: dict[str, Any], threads: int, log_bytes: int = 0) -> torch.Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        settings = config(stage, offload)
        settings["zeropage"]["speculation_bytes"] = log_bytes
        try:
            return train_ranks(Tiny(), 2, settings, 200)[0].parameters
        finally:
            torch.set_num_threads(before)

    expected = run({}, 1)
    whole = OPTIMIZER | PARAMETERS if stage == 3 else OPTIMIZER
    for offload, threads in ((OPTIMIZER, 1), (ratio(0.5), 2), (whole, 3)):
        for log_bytes in (0, 1 << 20):
            assert torch.equal(run(offload, threads, log_bytes), expected), (offload, threads, log_bytes)


def bytes_by_tier(stage: int, world: int, offload: dict[str, Any]) -> list[tuple[dict[str, int], dict[str, int], str]]:
    """For each rank of a bf16 run, the bytes on the device and on the host, and the table."""
    settings = config(stage, offload, **copy.deepcopy(PRECISIONS["bf16"]))

    def run(rank: int, communicator: Any):
        engine, *_ = zeropage.initialize(model=small_net(), config=settings)
        train_engine(engine, world, rank, 1)
        report = engine.memory_report()
        formula = [{kind: getattr(tier, kind) for kind in KINDS} for tier in (report.formula, report.formula_host)]
        for kind in KINDS:  # rows of a few KB: padding shows, and is the same wherever the bytes are
            for measured, by_formula in ((report.ranks, formula[0]), (report.host, formula[1])):
                assert (measured[rank][kind] > 0) == (by_formula[kind] > 0), kind
        return report.ranks[rank], report.host[rank], report.table()

    return run_ranks(world, run)


@pytest.mark.parametrize(
    ("stage", "offload", "moved"),
    [
        (1, OPTIMIZER, ("optimizer",)),
        (2, OPTIMIZER, ("gradients", "optimizer")),
        (3, OPTIMIZER, ("gradients", "optimizer")),
        (3, PARAMETERS, ("parameters",)),
        (3, OPTIMIZER | PARAMETERS, KINDS),
    ],
)
def test_the_device_loses_exactly_what_the_host_gains(stage: int, offload: dict[str, Any], moved: tuple[str, ...]):
    """Catches state that stays on the device, and bytes that are not counted."""
    for before, after in zip(bytes_by_tier(stage, 2, {}), bytes_by_tier(stage, 2, offload), strict=True):
        (device, host, _), (device_after, host_after, table) = before, after
        assert set(host.values()) == {0}
        for kind in KINDS:
            assert device_after[kind] == (0 if kind in moved else device[kind]), kind
            assert host_after[kind] == (device[kind] if kind in moved else 0), kind
            assert (f"host: {kind}" in table) == (kind in moved)


def test_a_ratio_moves_its_share_of_pages():
    """Catches a ratio that is read as its opposite, or that splits pages."""
    whole = bytes_by_tier(2, 2, {})[0][0]["optimizer"]
    for share in (0.25, 0.75):
        device, host, _ = bytes_by_tier(2, 2, ratio(share))[0]
        assert device["optimizer"] + host["optimizer"] == whole
        assert abs(host["optimizer"] / whole - share) < 0.2


class Wide(nn.Module):
    """Large enough for padding to vanish: 2.1 M elements."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(512, 512) for _ in range(8))

    def forward(self) -> torch.Tensor:
        return torch.stack([p.square().sum() for p in self.parameters()]).sum()


@pytest.mark.parametrize(("stage", "offload"), [(1, OPTIMIZER), (2, ratio(0.5)), (3, OPTIMIZER | PARAMETERS)])
def test_both_tiers_hold_what_the_formula_says(stage: int, offload: dict[str, Any]):
    """Catches a formula, which plans are made from, that is off by more than 2 % in either memory."""

    def run(rank: int, communicator: Any):
        engine, *_ = zeropage.initialize(
            model=Wide(), config=config(stage, offload, **copy.deepcopy(PRECISIONS["bf16"]))
        )
        report = engine.memory_report()
        for measured, formula in ((report.ranks, report.formula), (report.host, report.formula_host)):
            for kind in KINDS:
                assert measured[rank][kind] == pytest.approx(getattr(formula, kind), rel=0.02), kind

    run_ranks(2, run)


@pytest.mark.parametrize(
    ("saved", "loaded"), [(OPTIMIZER | PARAMETERS, {}), ({}, OPTIMIZER | PARAMETERS), (OPTIMIZER, ratio(0.4))]
)
def test_checkpoints_do_not_depend_on_the_place_of_state(saved: dict[str, Any], loaded: dict[str, Any], tmp_path):
    """Catches state that is saved from, or loaded into, the wrong memory."""
    precision = PRECISIONS["bf16"]

    def run(rank: int, communicator: Any, offload: dict[str, Any], resume: bool) -> torch.Tensor:
        engine, *_ = zeropage.initialize(model=small_net(), config=config(3, offload, **copy.deepcopy(precision)))
        return interrupted_run(engine, rank, tmp_path, resume)

    through = run_ranks(2, lambda rank, communicator: run(rank, communicator, saved, False))[0]
    again = run_ranks(2, lambda rank, communicator: run(rank, communicator, loaded, True))[0]
    assert torch.equal(through, again)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_states_are_moved_from_the_device_and_back(stage: int, world: int):
    """Catches state that is lost, that remains on the device, or that is used while it is on the host."""
    model = small_net()  # not by the ranks, which share one generator of random numbers

    def run(rank: int, communicator: Any, leave: bool) -> torch.Tensor:
        sections = copy.deepcopy(PRECISIONS["bf16"])
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config(stage, {}, **sections))
        for step in range(4):
            if leave and step == 2:
                before = engine._core.measured_bytes()
                engine.offload_states()
                device, host = engine._core.measured_bytes(), engine._core.measured_bytes(host=True)
                assert {kind: device[kind][0] for kind in KINDS} == dict.fromkeys(KINDS, 0)
                assert (
                    host["optimizer"][0] == before["optimizer"][0] and host["parameters"][0] == before["parameters"][0]
                )
                with pytest.raises(errors.UsageError, match="reload_states"):
                    engine(*part_of_batch(token_batch(0), world, rank))
                with pytest.raises(errors.UsageError, match="reload_states"):
                    engine.save_checkpoint("unused")
                with pytest.raises(Exception, match="reload_states"):
                    torch.utils.dlpack.to_dlpack(engine.module.tiny.detach())
                engine.reload_states()
                again = engine._core.measured_bytes()
                assert [again[kind][0] for kind in KINDS] == [before[kind][0] for kind in KINDS]
            engine.backward(engine(*part_of_batch(token_batch(step), world, rank)))
            engine.step()
        with zeropage.zero.GatheredParameters(list(engine.module.parameters())):
            return torch.cat([p.detach().flatten().float() for p in engine.module.parameters()])

    stayed = run_ranks(world, lambda rank, communicator: run(rank, communicator, False))[0]
    left = run_ranks(world, lambda rank, communicator: run(rank, communicator, True))[0]
    assert torch.equal(stayed, left)


def test_states_are_not_moved_between_the_micro_steps_of_an_update():
    """Catches gradients that are silently dropped."""
    engine, *_ = zeropage.initialize(model=small_net(), config=config(2, {}))
    engine.backward(engine(*token_batch(0)))
    with pytest.raises(errors.UsageError, match="no step has used"):
        engine.offload_states()
    engine.zero_grad()
    with pytest.raises(errors.UsageError, match="hp_params"):
        engine.offload_states(include=["everything"])
    engine.offload_states(include=["optim_states"])
    assert engine._core.measured_bytes()["parameters"][0] > 0
    engine.reload_states()
