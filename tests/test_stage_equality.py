"""Stages 0-3 give the same results: bit for bit where the order of summation is the same, and as plain PyTorch does
within rounding."""

import functools
import json
from typing import Any

import pytest
import torch
from processes import run_processes
from training import config_of, small_net, train_engine, train_plain, train_ranks

import zeropage

STEPS = 20
WORLDS = (1, 2, 4)
# In 20 steps of AdamW at 1e-2 parameters move by up to 0.2. Sums in another order differ in the last place, which Adam
# enlarges where a gradient is near zero: plain PyTorch with the batch in 2, 4 or 8 accumulated parts ends up to 8e-5
# from plain PyTorch with the whole batch.
ROUNDING = 2e-4
LARGEST_PAGE_NUMEL = 8192  # SmallNet's largest parameter (64 x 128), a multiple of 2048 x 4 ranks

VARIANTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "stage1": (1, {}, {}),
    "stage2": (2, {}, {}),
    "stage3": (3, {}, {}),
    "stage0 all-reduced": (0, {"reduce_scatter": False}, {}),
    "stage1 all-reduced": (1, {"reduce_scatter": False}, {}),
    "stage2 all-reduced": (2, {"reduce_scatter": False}, {}),
    "stage1 page per parameter": (1, {}, {"page_numel": 1}),
    "stage2 small buckets": (2, {"reduce_bucket_size": 5000}, {}),
    "stage2 small gather buckets": (2, {"allgather_bucket_size": 3000}, {}),
    "stage3 page per parameter": (3, {}, {"page_numel": 1}),
    "stage3 pages of 10000": (3, {}, {"page_numel": 10_000}),
    "stage3 persistent small ones": (3, {"stage3_param_persistence_threshold": 1000}, {"page_numel": 1}),
    "stage3 one live page": (3, {"stage3_max_live_parameters": LARGEST_PAGE_NUMEL}, {"page_numel": 1}),
    "stage3 few live": (3, {"stage3_max_live_parameters": 20_000}, {"page_numel": 1}),
    "stage3 no reuse": (3, {"stage3_max_reuse_distance": 0}, {"page_numel": 1}),
    "stage3 all-reduced": (3, {"reduce_scatter": False}, {"page_numel": 10_000}),
}


@functools.cache
def plain_parameters() -> torch.Tensor:
    return train_plain(small_net(), STEPS)


@functools.cache
def stage0_parameters(world: int) -> torch.Tensor:
    return train_ranks(small_net(), world, config_of(0), STEPS)[0].parameters


def config_of_variant(name: str) -> dict:
    stage, zero, own = VARIANTS[name]
    return config_of(stage, zero_optimization=zero, zeropage=own)


@pytest.mark.parametrize("world", WORLDS)
def test_stage0_follows_plain_pytorch(world):
    """Catches a wrong mean over ranks (world size 1 included), a wrong clip factor, a wrong update."""
    difference = (stage0_parameters(world) - plain_parameters()).abs().max().item()
    assert difference < ROUNDING


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("world", WORLDS)
def test_same_bits_as_stage0(world, variant):
    """Catches any placement, page size, live limit or way of reducing that changes a sum, loses a gradient or reads a
    stale page."""
    outcome = train_ranks(small_net(), world, config_of_variant(variant), STEPS)[0]
    assert torch.equal(outcome.parameters, stage0_parameters(world))


@pytest.mark.parametrize("world", (2, 4))
@pytest.mark.parametrize("variant", ("stage3 one live page", "stage3 few live"))
def test_live_parameters_stay_within_the_limit(world, variant):
    """Catches an eviction that is late or missing. Counted in bytes of frames, fp32; one operator may need a page
    more."""
    limit_bytes = 4 * VARIANTS[variant][1]["stage3_max_live_parameters"]
    for outcome in train_ranks(small_net(), world, config_of_variant(variant), 3):
        assert outcome.pager.evictions > 0 and outcome.pager.faults > outcome.page_count
        assert outcome.pager.peak_live_bytes <= limit_bytes + 4 * LARGEST_PAGE_NUMEL


TWO_SIDED_VARIANTS = {  # zero_optimization, and how many gathers of a run are started ahead: none, some, or any number (None)
    "defaults": ({}, True),
    "no prefetch": ({"stage3_prefetch_bucket_size": 0}, False),
    "prefetch of one page": ({"stage3_prefetch_bucket_size": LARGEST_PAGE_NUMEL}, True),
    "one live page": ({"stage3_max_live_parameters": LARGEST_PAGE_NUMEL}, None),
    "few live": ({"stage3_max_live_parameters": 30_000, "stage3_prefetch_bucket_size": 20_000}, True),
    "no reuse": ({"stage3_max_reuse_distance": 0}, True),
}


@pytest.mark.parametrize("variant", TWO_SIDED_VARIANTS)
@pytest.mark.parametrize("world", (2, 4))
def test_same_bits_with_gathers_that_need_all_ranks(world, variant):
    """Catches prefetches out of order, frames reused before a late gather or reduction is done with them. As over a
    network: peers' memory is out of reach, and every collective is delayed at random."""
    zero, prefetches = TWO_SIDED_VARIANTS[variant]
    config = config_of(3, zero_optimization=zero, zeropage={"page_numel": 1})
    outcomes = train_ranks(small_net(), world, config, STEPS, faults={"two_sided": True, "max_delay_us": 100})
    for outcome in outcomes:
        assert torch.equal(outcome.parameters, stage0_parameters(world))
        assert prefetches is None or (outcome.pager.prefetches > 0) == prefetches
        limit_bytes = 4 * zero.get("stage3_max_live_parameters", 1_000_000)
        assert outcome.pager.peak_live_bytes <= limit_bytes + 4 * LARGEST_PAGE_NUMEL


def test_pages_stay_without_a_limit():
    """Catches needless gathers: without a limit every page is gathered once per step."""
    for outcome in train_ranks(small_net(), 2, config_of(3, zeropage={"page_numel": 1}), 5):
        assert outcome.pager.evictions == 0
        assert outcome.pager.faults == 5 * outcome.page_count


@pytest.mark.parametrize("world", (1, 2))
def test_accumulation(world):
    """Catches micro batches lost, counted twice or divided wrongly. Stages 0 and 1 sum micro batches before ranks, 2
    and 3 ranks before micro batches: so two pairs of equal bits, which agree within rounding."""
    ended = [
        train_ranks(small_net(), world, config_of(stage, accumulation=4), STEPS)[0].parameters for stage in range(4)
    ]
    assert torch.equal(ended[0], ended[1])
    assert torch.equal(ended[2], ended[3])
    assert (ended[0] - ended[2]).abs().max().item() < ROUNDING
    assert (ended[0] - plain_parameters()).abs().max().item() < ROUNDING
    assert (ended[2] - plain_parameters()).abs().max().item() < ROUNDING


def train_as_process(world: int, communicator: str) -> list[torch.Tensor]:
    """One rank of runs of 5 steps at stages 2 and 3; runs in a separate process."""
    ended = []
    for stage in (2, 3):
        zero = {"stage3_max_live_parameters": LARGEST_PAGE_NUMEL}
        config = config_of(stage, zero_optimization=zero, zeropage={"page_numel": 1, "communicator": communicator})
        engine, *_ = zeropage.initialize(model=small_net(), config=config)
        ended.append(train_engine(engine, world, engine.global_rank, 5).parameters)
        engine.destroy()
    return ended


@pytest.mark.parametrize("communicator", ("shared_memory", "c10d"))
def test_processes_give_the_bits_of_threads(communicator, tmp_path):
    """Catches a transport that sums in another order, or shows a peer's shard before it is whole."""
    expected = train_ranks(small_net(), 2, config_of(0), 5)[0].parameters
    arguments = json.dumps({"world": 2, "communicator": communicator})
    for ended in run_processes(2, "test_stage_equality", "train_as_process", arguments, tmp_path):
        assert all(torch.equal(parameters, expected) for parameters in ended)
