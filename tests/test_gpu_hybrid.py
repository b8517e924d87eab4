"""Hybrid sharding (zeropage.shard_ranks) on devices: four ranks, each with a device, in groups of two.

The oracle is sharding over all ranks, on the same devices and on the CPU: sums have the same order, so results have the
same bits. On the simulated device tasks are delayed at random, and every access that no event orders is an error.
"""

import copy
import json
from pathlib import Path
from typing import Any

import accelerator
import pytest
import simulated_device
import torch
from processes import run_processes
from test_hybrid import PRECISIONS, STAGES, config, run
from training import flat_parameters, part_of_batch, small_net, token_batch

import zeropage
from zeropage import distributed

pytestmark = pytest.mark.simulated

WORLD = 4
STEPS = 3
CPU = {"device": "cpu"}


def engine_of(settings: dict[str, Any], model: torch.nn.Module | None = None) -> Any:
    rank = distributed.current_world().rank
    model = accelerator.OnDevice(model or small_net(), accelerator.device(rank % 2))
    return zeropage.initialize(model=model, config=copy.deepcopy(settings))[0]


def updates(engine: Any, steps: range) -> list[float]:
    """The losses of updates, each of the micro batches of all ranks."""
    accumulation = engine.gradient_accumulation_steps()
    rank = distributed.current_world().rank
    losses = []
    for step in steps:
        for micro in range(accumulation):
            batch = token_batch(step, size=12 * accumulation)
            loss = engine(*part_of_batch(batch, WORLD, rank, micro, accumulation))
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())
    return losses


def outcome_of(settings: dict[str, Any], seed: int = 0) -> tuple[list[float], float, torch.Tensor]:
    """Losses, norm and parameters of a short run on this rank."""
    with simulated_device.visible(True), simulated_device.delays(WORLD * seed + distributed.current_world().rank, 1000):
        engine = engine_of(settings)
        losses = updates(engine, range(STEPS))
        outcome = losses, engine.get_global_grad_norm() or 0.0, flat_parameters(engine.module).cpu()
        accelerator.check()
        engine.destroy()
    return outcome


def assert_same(found: Any, expected: Any, name: str = "") -> None:
    """Norms are added shard by shard."""
    assert found[0] == expected[0], name
    assert found[1] == pytest.approx(expected[1], rel=1e-6), name
    assert torch.equal(found[2], expected[2]), name


ACCUMULATION: dict[str, Any] = {"batch": 36, "accumulation": 3}
RUNS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {**PRECISIONS["bf16"], **ACCUMULATION},
    "fp16": {**PRECISIONS["fp16"], "clipping": 0.0},
    "accumulation": ACCUMULATION,
    "reduce_scatter false": {"zero_optimization": {"reduce_scatter": False}},
    "overlap_comm false": {"zero_optimization": {"overlap_comm": False}},
    "optimizer on the host": {
        "zero_optimization": {"offload_optimizer": CPU},
        "zeropage": {"offloaded_update": "host"},
    },
    "streamed": {"zero_optimization": {"offload_optimizer": CPU}, **PRECISIONS["bf16"]},
    "ahead": {
        "zero_optimization": {"offload_optimizer": CPU},
        "zeropage": {"offloaded_update": "host", "speculation_bytes": 10**7},
        "clipping": 0.0,
    },
}
RUNS_OF_STAGE_3: dict[str, dict[str, Any]] = {
    "little is live": {"zero_optimization": {"stage3_max_live_parameters": 1}},
    "persistent parameters": {"zero_optimization": {"stage3_param_persistence_threshold": 1000}},
    "parameters on the host": {"zero_optimization": {"offload_param": CPU, "offload_optimizer": CPU}, **ACCUMULATION},
}


def runs_of(stage: int, shard_ranks: int, folder: str) -> dict[str, dict[str, Any]]:
    runs = RUNS | (RUNS_OF_STAGE_3 if stage == 3 else {})
    drive = {"device": "nvme", "nvme_path": folder}
    runs["on a drive"] = {"zero_optimization": {"offload_optimizer": drive}}
    if stage == 3:
        runs["on a drive"]["zero_optimization"] |= {"offload_param": {**drive, "max_in_cpu": 0}}
    return {name: config(stage, shard_ranks, **copy.deepcopy(sections)) for name, sections in runs.items()}


def train_all_runs(stage: int, folder: str) -> dict[str, list[Any]]:
    """Each run in groups, and over all ranks."""
    flat, groups = runs_of(stage, 0, folder), runs_of(stage, 2, folder)
    return {name: [outcome_of(groups[name], seed), outcome_of(flat[name])] for seed, name in enumerate(flat)}


@pytest.mark.slow
@STAGES
def test_groups_train_as_all_ranks_together(stage: int, tmp_path: Path):
    """Catches sums over a group only or in another order, on streams that nothing orders; gradients that are copied to
    the host before they have been summed; and pages gathered from another group."""
    arguments = json.dumps({"stage": stage, "folder": str(tmp_path)})
    ranks = run_processes(WORLD, "test_gpu_hybrid", "train_all_runs", arguments, tmp_path, timeout_s=240)
    for outcomes in ranks:
        for name, (groups, flat) in outcomes.items():
            assert_same(groups, flat, name)
            assert torch.equal(groups[2], ranks[0][name][0][2]), name


def train_in_fp32(stage: int) -> Any:
    return outcome_of(config(stage, 2))


@STAGES
def test_groups_have_the_cpus_bits(stage: int, tmp_path: Path):
    """Catches what sharding over all ranks of devices gets wrong in the same way."""
    ranks = run_processes(WORLD, "test_gpu_hybrid", "train_in_fp32", json.dumps({"stage": stage}), tmp_path, 120)

    def on_the_cpu(engine: Any, rank: int) -> list[float]:
        losses = []
        for step in range(STEPS):
            loss = engine(*part_of_batch(token_batch(step, size=12), WORLD, rank))
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())
        return losses

    for (losses, _, parameters), (expected_losses, expected) in zip(
        ranks, run(config(stage, 2), on_the_cpu), strict=True
    ):
        assert losses == expected_losses and torch.equal(parameters, expected)


def starts_and_waits(stage: int, deterministic: bool, seed: int) -> list[Any]:
    """What this rank started in each step, the waits of its host in the last one, its parameters, and the same waits
    with one group of all ranks."""
    results: list[Any] = []
    for shard_ranks in (2, 0):
        settings = config(
            stage,
            shard_ranks,
            accumulation=2,
            batch=24,
            zeropage={"page_numel": 4096, "deterministic_reduction": deterministic},
            zero_optimization={"stage3_max_live_parameters": 9000},
        )
        rank = distributed.current_world().rank
        started = []
        with simulated_device.visible(True), simulated_device.delays(WORLD * seed + rank, max_us=2000):
            engine = engine_of(settings)
            updates(engine, range(2))
            for step in range(2, 4):
                simulated_device.take_starts()
                with simulated_device.count() as counted:
                    updates(engine, range(step, step + 1))
                started.append(simulated_device.take_starts())
            parameters = flat_parameters(engine.module).cpu()
            accelerator.check()
            engine.destroy()
        results += [started, {name: counted[name] for name in ("waits", "fetches")}, parameters]
    return results


@pytest.mark.parametrize("one_queue", [False, True])
@pytest.mark.parametrize("deterministic", [True, False])
@STAGES
def test_collectives_start_in_one_order_and_no_host_waits_for_them(
    stage: int, deterministic: bool, one_queue: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Catches stages of a reduction that start when this rank happens to see the previous one end, which may be a
    deadlock on GPUs; hosts that wait for a reduction between groups; and replicas with different bits."""
    if one_queue:
        monkeypatch.setenv("ZEROPAGE_SIMULATED_ONE_QUEUE", "1")
    arguments = json.dumps({"stage": stage, "deterministic": deterministic, "seed": stage})
    ranks = run_processes(WORLD, "test_gpu_hybrid", "starts_and_waits", arguments, tmp_path, timeout_s=120)
    for rank, (started, waits, parameters, _, flat_waits, flat_parameters_) in enumerate(ranks):
        assert started == ranks[0][0], f"rank {rank}"
        # Groups and replicas, of gradients; and groups of parameters.
        assert len({entry.split(":")[0] for entry in started[0]}) == 3
        assert waits == flat_waits
        assert torch.equal(parameters, ranks[0][2])
        if deterministic:
            assert torch.equal(parameters, flat_parameters_)
        else:
            assert (parameters - flat_parameters_).abs().max() < 1e-5
