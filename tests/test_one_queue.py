"""Two ranks whose devices run the tasks of all streams in one queue, as GPUs with CUDA_DEVICE_MAX_CONNECTIONS=1: a
collective that waits for the other rank holds up everything that was given later."""

import copy
import json
import random
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import accelerator
import pytest
import simulated_device
import torch
import torch.distributed as dist
from processes import run_processes
from test_start_order import sleep_in_layers
from training import config_of, flat_parameters, part_of_batch, small_net, token_batch

import zeropage
from zeropage import distributed

pytestmark = pytest.mark.simulated

STEPS = 2
VARIABLE = "ZEROPAGE_SIMULATED_ONE_QUEUE"

HOST = {"offload_optimizer": {"device": "cpu"}}
PLACES: dict[str, dict[str, Any]] = {
    "device": {},
    "device, sums by the backend": {"zeropage": {"deterministic_reduction": False}},
    "host": {"zero_optimization": HOST, "zeropage": {"offloaded_update": "host", "speculation_bytes": 0}},
    "host, ahead": {
        "zero_optimization": HOST,
        "zeropage": {"offloaded_update": "host", "speculation_bytes": 1 << 20},
        "clipping": 0.0,
    },
    "streamed": {"zero_optimization": HOST},
}


def sections_of(stage: int, place: str) -> dict[str, Any]:
    sections = copy.deepcopy(PLACES[place])
    sections["zeropage"] = {"page_numel": 4096, **sections.get("zeropage", {})}
    zero = sections.setdefault("zero_optimization", {})
    zero["stage3_max_live_parameters"] = 9000
    if stage == 3 and "offload_optimizer" in zero:
        zero["offload_param"] = {"device": "cpu"}
    return sections


def train(stage: int, place: str, seed: int) -> torch.Tensor:
    """This rank's final parameters; the host and its device are delayed."""
    world = distributed.current_world()
    model = accelerator.OnDevice(small_net(), accelerator.device(world.rank))
    sleep_in_layers(model, random.Random(100 * seed + world.rank))
    config = config_of(stage, accumulation=2, bf16={"enabled": True}, **sections_of(stage, place))
    engine, *_ = zeropage.initialize(model=model, config=config)
    with simulated_device.delays(10 * seed + world.rank, max_us=2000):
        for step in range(STEPS):
            for micro in range(2):
                engine.backward(engine(*part_of_batch(token_batch(step), world.size, world.rank, micro, 2)))
                engine.step()
        final = flat_parameters(engine.module).cpu()
    engine.destroy()
    return final


def train_in_all_places(stage: int) -> dict[str, torch.Tensor]:
    with simulated_device.visible(True):
        return {place: train(stage, place, seed) for seed, place in enumerate(PLACES)}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_training_ends_with_the_same_bits(stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Catches ranks that start collectives, or work for which collectives wait, in different orders, and a host that
    waits for something behind a collective before it starts what the other rank waits for: both are deadlocks here."""
    arguments = json.dumps({"stage": stage})
    (expected, _) = run_processes(2, "test_one_queue", "train_in_all_places", arguments, tmp_path, timeout_s=120)
    monkeypatch.setenv(VARIABLE, "1")
    for finals in run_processes(2, "test_one_queue", "train_in_all_places", arguments, tmp_path, timeout_s=120):
        for place, values in finals.items():
            assert torch.equal(values, expected[place]), place


def ends(stream: torch.Stream) -> bool:
    """Whether the tasks of a stream end within a second."""
    ended = stream.record_event()
    end = time.monotonic() + 1
    while not ended.query() and time.monotonic() < end:
        time.sleep(0.01)
    return ended.query()


def overtakes() -> bool:
    """Whether a task of one stream runs before an earlier one of another stream has ended."""
    side = torch.Stream(accelerator.device())
    with simulated_device.held():
        with side:
            torch.ones(4, device=accelerator.device())
        return ends(side)


def cross() -> bool:
    """Whether collectives end that two ranks start in different orders, each on a stream of its own."""
    world = distributed.current_world()
    device = accelerator.device(world.rank)
    distributed.init_process_group(device, world, timeout=timedelta(seconds=30))
    groups = [dist.new_group(timeout=timedelta(seconds=8)) for _ in range(2)]
    values = [torch.ones(4, device=device) for _ in groups]
    dist.barrier()
    works = [
        dist.all_reduce(values[i], group=groups[i], async_op=True) for i in ((0, 1) if world.rank == 0 else (1, 0))
    ]
    for work in works:
        work.wait()  # of the current stream
    return ends(torch.accelerator.current_stream(device))


@pytest.mark.parametrize(("world", "function"), [(1, "overtakes"), (2, "cross")])
def test_the_queue_keeps_the_order_of_all_streams(
    world: int, function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Catches a simulation in which streams overtake each other after all, which would show no deadlock."""
    assert run_processes(world, "test_one_queue", function, "{}", tmp_path) == [True] * world
    monkeypatch.setenv(VARIABLE, "1")
    assert run_processes(world, "test_one_queue", function, "{}", tmp_path) == [False] * world
