"""Second shards of pages (zero_hpz_partition_size) on a device, where ranks talk through process groups."""

import json
from pathlib import Path

import accelerator
import pytest
import simulated_device
from processes import run_processes
from training import config_of, part_of_batch, small_net, token_batch

import zeropage
from zeropage import distributed

pytestmark = pytest.mark.simulated

STEPS = 3


def train_with_groups_of(count: int) -> tuple[list[float], int]:
    """The losses of this rank, and on how many process groups it started collectives."""
    world = distributed.current_world()
    model = accelerator.OnDevice(small_net(), accelerator.device(world.rank))
    zero = {"stage3_max_live_parameters": 9000, "zero_hpz_partition_size": count}
    config = config_of(3, zeropage={"page_numel": 4096}, zero_optimization=zero)
    engine, *_ = zeropage.initialize(model=model, config=config)
    losses = []
    simulated_device.take_starts()
    for step in range(STEPS):
        loss = engine(*part_of_batch(token_batch(step), world.size, world.rank, 0, 1))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    groups = {entry.split(":")[0] for entry in simulated_device.take_starts()}
    engine.destroy()
    return losses, len(groups)


def test_pages_are_gathered_from_nearby_ranks_of_a_device(tmp_path: Path):
    """Catches second shards that are read before they are written on the device's stream, that outlive an update, or
    that are never used."""
    plain, second = (
        run_processes(2, "test_second_shards", "train_with_groups_of", json.dumps({"count": count}), tmp_path)
        for count in (1, 2)
    )
    for (losses, groups), (second_losses, second_groups) in zip(plain, second, strict=True):
        assert second_losses == losses
        assert (groups, second_groups) == (2, 3)  # of parameters, of gradients, of nearby ranks
