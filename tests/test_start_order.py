"""The order in which a rank starts collectives on its two groups of a device, one for parameters and one for gradients.

Backends like NCCL's may wait for ever where ranks start the collectives of two communicators in different orders. The
simulated device's backend records the collectives that are started."""

import json
import random
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import accelerator
import pytest
import simulated_device
import torch
from processes import run_processes
from training import config_of, part_of_batch, small_net, token_batch

import zeropage
from zeropage import distributed
from zeropage.errors import ZeropageError

pytestmark = pytest.mark.simulated

STEPS = 3


def sleep_in_layers(model: torch.nn.Module, source: random.Random) -> None:
    """The host sleeps after each layer, in the forward and in the backward, for a time of its own."""

    def sleep(*_: Any) -> None:
        time.sleep(source.uniform(0, 0.003))

    def after(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        sleep()
        if output.requires_grad:
            output.register_hook(sleep)

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(after)


def train_and_list(stage: int, deterministic: bool, seed: int) -> list[list[str]]:
    """What this rank started in each step."""
    options = {"page_numel": 4096, "deterministic_reduction": deterministic}
    limits = {"stage3_max_live_parameters": 9000}
    world = distributed.current_world()
    model = accelerator.OnDevice(small_net(), accelerator.device(world.rank))
    sleep_in_layers(model, random.Random(100 * seed + world.rank))
    config = config_of(stage, accumulation=2, zeropage=options, zero_optimization=limits)
    engine, *_ = zeropage.initialize(model=model, config=config)
    started = []
    with simulated_device.visible(True), simulated_device.delays(10 * seed + world.rank, max_us=2000):
        for step in range(STEPS):
            for micro in range(2):
                engine.backward(engine(*part_of_batch(token_batch(step), world.size, world.rank, micro, 2)))
                engine.step()
            started.append(simulated_device.take_starts())
    engine.destroy()
    return started


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_all_ranks_start_collectives_in_the_same_order(stage: int, deterministic: bool, tmp_path: Path):
    """Catches collectives that start when this rank happens to see something else end: those of two communicators would
    then start in another order on each rank, which may be a deadlock on GPUs."""
    for seed in range(2):
        arguments = json.dumps({"stage": stage, "deterministic": deterministic, "seed": seed})
        first, second = run_processes(2, "test_start_order", "train_and_list", arguments, tmp_path)
        for step, (one, other) in enumerate(zip(first, second, strict=True)):
            assert one == other, f"step {step}"
            assert len({entry.split(":")[0] for entry in one}) == 2


CALLS: dict[str, Callable[[Any, torch.device], Any]] = {
    "barrier": lambda communicator, device: communicator.barrier(),
    "all_gather of 40 bytes": lambda communicator, device: communicator.all_gather(torch.ones(10, device=device)),
    "all_gather of 48 bytes": lambda communicator, device: communicator.all_gather(torch.ones(12, device=device)),
    "reduce_scatter of 5 fp32": lambda communicator, device: communicator.reduce_scatter(torch.ones(10, device=device)),
    "broadcast of 40 bytes": lambda communicator, device: communicator.broadcast(torch.ones(10, device=device), 0),
}


def call_differently(names: list[str]) -> list[Any]:
    """What was started before the first collective, the error of one that differs, and how long it took."""
    world = distributed.current_world()
    device = accelerator.device(world.rank)
    limit = timedelta(seconds=20)
    distributed.init_process_group(device, world, timeout=limit)
    simulated_device.take_starts()
    communicator = distributed.new_process_groups(device, True, limit)
    connected = simulated_device.take_starts()
    communicator.all_gather(torch.ones(10, device=device))
    began = time.monotonic()
    try:
        CALLS[names[world.rank]](communicator, device)
    except ZeropageError as error:
        return [connected, f"{type(error).__name__}: {error}", time.monotonic() - began]
    return [connected, "", 0.0]


@pytest.mark.parametrize(
    "names",
    [
        ("all_gather of 40 bytes", "barrier"),
        ("all_gather of 40 bytes", "all_gather of 48 bytes"),
        ("reduce_scatter of 5 fp32", "all_gather of 48 bytes"),
        ("broadcast of 40 bytes", "reduce_scatter of 5 fp32"),
    ],
    ids=", ".join,
)
def test_different_calls_are_named(names: tuple[str, str], tmp_path: Path):
    """Catches ranks that get no error for different collectives, because these have started already; and connections
    that are made by the first collective, where the host waits for ranks that are late."""
    arguments = json.dumps({"names": names})
    for connected, error, seconds in run_processes(2, "test_start_order", "call_differently", arguments, tmp_path):
        assert [entry.split(": ")[1] for entry in connected] == ["connect"]
        assert error.startswith("PeerError") and all(name in error for name in names), error
        assert seconds < 10
