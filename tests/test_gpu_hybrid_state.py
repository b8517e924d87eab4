"""What all ranks of a job of devices in groups agree on: checkpoints, values of one rank, skipped steps, errors. See
test_gpu_hybrid.py."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerator
import pytest
import torch
from processes import messages_after_kill, run_processes, update_until_killed
from test_gpu_hybrid import WORLD, engine_of, updates
from test_hybrid import PRECISIONS, STAGES, Branches, config, micro_steps, run
from training import flat_parameters, part_of_batch, small_net, token_batch

import zeropage
from zeropage import distributed
from zeropage.errors import PeerError

pytestmark = pytest.mark.simulated


def end(engine: Any) -> torch.Tensor:
    """Its parameters; nothing is left on the device."""
    parameters = flat_parameters(engine.module).cpu()
    accelerator.check()
    engine.destroy()
    return parameters


def save_and_resume(stage: int, folder: str, precision: str) -> list[torch.Tensor]:
    """Two updates, a checkpoint, and two more by another engine: in groups and over all ranks, each from each."""
    settings = {ranks: config(stage, ranks, **PRECISIONS[precision]) for ranks in (2, 0)}
    results = []
    for saved in settings:
        engine = engine_of(settings[saved])
        updates(engine, range(2))
        engine.save_checkpoint(f"{folder}/{saved}")
        engine.destroy()
        for loaded in settings:
            engine = engine_of(settings[loaded], small_net(seed=1))
            engine.load_checkpoint(f"{folder}/{saved}")
            updates(engine, range(2, 4))
            results.append(end(engine))
    return results


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@STAGES
def test_checkpoints_go_to_all_ranks_and_back(stage: int, precision: str, tmp_path: Path):
    """Catches checkpoints with state of each group or of one rank less, on devices and from there to the CPU."""
    arguments = json.dumps({"stage": stage, "folder": str(tmp_path), "precision": precision})
    ranks = run_processes(WORLD, "test_gpu_hybrid_state", "save_and_resume", arguments, tmp_path, timeout_s=120)
    for results in ranks:
        assert all(torch.equal(parameters, ranks[0][0]) for parameters in results)

    def resume_on_the_cpu(engine: Any, rank: int) -> None:
        engine.load_checkpoint(str(tmp_path / "2"))
        micro_steps(engine, rank, range(2, 4))

    model = accelerator.OnDevice(small_net(), torch.device("cpu"))  # with the names of the checkpoint
    on_the_cpu = run(config(stage, 2, **PRECISIONS[precision]), resume_on_the_cpu, model=model)
    assert torch.equal(on_the_cpu[0][1], ranks[0][0])


def write_on_one_rank(engine: Any, rank: int) -> Any:
    """Values of one rank, and a gradient that the program changes."""
    weight = engine.module.inner.expand[0].weight
    with zeropage.zero.GatheredParameters([weight], modifier_rank=3):
        if rank == 3:
            with torch.no_grad():
                weight.fill_(0.25)
    losses = updates(engine, range(1))
    engine.backward(engine(*part_of_batch(token_batch(5, size=12), WORLD, rank)))
    gradient = weight.grad.clone()
    weight.grad.mul_(0.5)
    engine.step()
    return losses, gradient.double().sum().item(), updates(engine, range(6, 7))


def overflow_on_one_rank(engine: Any, rank: int) -> Any:
    applied = []
    for step in range(4):
        loss = engine(*part_of_batch(token_batch(step, size=12), WORLD, rank))
        engine.backward(loss * math.inf if (step, rank) == (1, 3) else loss)
        engine.step()
        applied.append(engine.was_step_applied())
    assert applied == [True, False, True, True]
    return engine.loss_scale(), engine.skipped_steps


def use_different_layers(engine: Any, rank: int) -> list[float]:
    losses = []
    for step in range(3):
        x = torch.randn(3, 32, generator=torch.Generator().manual_seed(10 * step + rank)).to(engine.device)
        # At stage 3 the ranks of a group gather the same pages; groups differ.
        loss = engine.module.inner(x, rank // 2 if engine.zero_optimization_stage() == 3 else rank)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def unfreeze(engine: Any, rank: int) -> list[float]:
    engine.module.inner.expand[0].weight.requires_grad = True
    return updates(engine, range(2))


def branches() -> torch.nn.Module:
    torch.manual_seed(0)
    return Branches()


def partly_frozen() -> torch.nn.Module:
    model = small_net()
    for parameter in model.expand.parameters():
        parameter.requires_grad = False
    return model


LOOPS: dict[str, tuple[Callable[[Any, int], Any], Callable[[], torch.nn.Module], dict[str, Any]]] = {
    "values of one rank": (write_on_one_rank, small_net, {}),
    "an overflow on one rank": (overflow_on_one_rank, small_net, PRECISIONS["fp16"]),
    "different graphs": (use_different_layers, branches, {"zeropage": {"page_numel": 1100}}),
    "unfrozen": (unfreeze, partly_frozen, {}),
    "replicas are compared": (
        lambda engine, rank: updates(engine, range(2)),
        small_net,
        {"zeropage": {"replica_check_steps": 1}},
    ),
}


# Whole gradients may be changed on every rank only; and over all ranks every one gathers the same pages.
WITHOUT_ORACLE = {(1, "values of one rank"), (3, "different graphs")}


def run_all_loops(stage: int) -> dict[str, list[Any]]:
    rank = distributed.current_world().rank
    results: dict[str, list[Any]] = {}
    for name, (loop, model, sections) in LOOPS.items():
        if (stage, name) in WITHOUT_ORACLE:
            continue
        for ranks in (2, 0):
            engine = engine_of(config(stage, ranks, **copy.deepcopy(sections)), model())
            results.setdefault(name, []).append((loop(engine, rank), end(engine)))
    return results


@pytest.mark.slow
@STAGES
def test_all_ranks_agree(stage: int, tmp_path: Path):
    """Catches values, overflows, pages with gradients and digests that stay in a group."""
    ranks = run_processes(WORLD, "test_gpu_hybrid_state", "run_all_loops", json.dumps({"stage": stage}), tmp_path, 240)
    for results in ranks:
        for name, ((seen, parameters), (seen_flat, parameters_flat)) in results.items():
            assert seen == seen_flat, name
            assert torch.equal(parameters, parameters_flat), name


def build_in_shards() -> list[Any]:
    rank = distributed.current_world().rank
    results = []
    for ranks in (2, 0):
        settings = config(3, ranks, zero_optimization={"stage3_max_live_parameters": 2000})
        with zeropage.zero.Init(config_dict_or_path=settings):
            model = small_net(seed=rank)  # rank 0's values count
        engine, *_ = zeropage.initialize(model=model, config=settings)
        losses = []
        for step in range(2):
            batch = part_of_batch(token_batch(step, size=12), WORLD, rank)
            loss = engine(*(x.to(engine.device) for x in batch))
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())
        results.append((losses, end(engine)))
    return results


def test_models_of_an_init_scope(tmp_path: Path):
    """Catches tensors of zero.Init that are divided over all ranks, or that get one group's values."""
    for groups, flat in run_processes(WORLD, "test_gpu_hybrid_state", "build_in_shards", "{}", tmp_path, timeout_s=120):
        assert groups[0] == flat[0] and torch.equal(groups[1], flat[1])


def write_differently() -> str:
    engine = engine_of(config(2, 2))
    try:
        with torch.no_grad():
            engine.module.inner.tiny.fill_(1.0 if distributed.current_world().rank < 2 else 2.0)
        updates(engine, range(1))
    except PeerError as error:
        return str(error)
    return ""


def test_different_writes_of_groups_are_found(tmp_path: Path):
    """Catches a comparison of writes within each group only."""
    for message in run_processes(WORLD, "test_gpu_hybrid_state", "write_differently", "{}", tmp_path):
        assert "tiny' was written outside an update" in message


def train_until_killed(folder: str) -> str:
    """A rank that trains until a peer is killed."""
    engine = engine_of(config(3, 2))
    return update_until_killed(engine.global_rank, folder, lambda step: updates(engine, range(step, step + 1)))


def test_a_rank_of_another_group_that_is_killed(tmp_path: Path):
    """Catches survivors of the other group that wait for the timeout, and messages without the group of the rank."""
    messages = messages_after_kill(WORLD, "test_gpu_hybrid_state", tmp_path, killed=3)
    assert all("Error: " in message and ("of group" in message or "of the job" in message) for message in messages), (
        messages
    )
