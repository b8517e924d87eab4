"""State of hybrid sharding (zeropage.shard_ranks): checkpoints, saved models, memory, replicas, and ranks that die."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import messages_after_kill, run_processes, update_until_killed
from test_hybrid import OPTIMIZERS, PRECISIONS, STAGES, assert_same, config, micro_steps, over_all_ranks, run
from training import flat_parameters, small_net

import zeropage

safetensors = pytest.importorskip("safetensors.torch")


def checkpoints(folder: Path, saved: dict[str, Any], loaded: dict[str, Any], worlds: tuple[int, int]) -> list[Any]:
    """Three updates, a save, a load by other ranks into another model, and three more updates."""

    def save(engine: Any, rank: int) -> None:
        micro_steps(engine, rank, range(3), worlds[0])
        engine.save_checkpoint(str(folder), client_state={"seen": 3})

    def load(engine: Any, rank: int) -> Any:
        _, client = engine.load_checkpoint(str(folder))
        return client["seen"], micro_steps(engine, rank, range(3, 6), worlds[1])

    run(saved, save, worlds[0])
    return run(loaded, load, worlds[1], small_net(seed=1))


@pytest.mark.parametrize("other", [(2, 0), (4, 0), (6, 3)])
@STAGES
def test_checkpoints_go_to_other_ranks_and_back(stage: int, other: tuple[int, int], tmp_path: Path):
    """Catches checkpoints with state of each group, without that of a group's later ranks, or loaded by one group."""
    world, ranks = other
    flat, hybrid = config(stage), config(stage, 2)
    expected = checkpoints(tmp_path / "flat", flat, config(stage), (4, world))
    assert_same(checkpoints(tmp_path / "there", hybrid, config(stage, ranks), (4, world)), expected)
    expected = checkpoints(tmp_path / "flat back", config(stage), flat, (world, 4))
    assert_same(checkpoints(tmp_path / "back", config(stage, ranks), hybrid, (world, 4)), expected)


@pytest.mark.parametrize("name", ["Muon", "RMSprop"])
def test_checkpoints_of_optimizers_of_pytorch(name: str, tmp_path: Path):
    """Catches state of whole parameters that every group saves, or none."""
    optimizer = OPTIMIZERS[name]
    flat, hybrid = (config(2, ranks, optimizer=optimizer) for ranks in (0, 2))
    assert_same(checkpoints(tmp_path / "h", hybrid, flat, (4, 2)), checkpoints(tmp_path / "f", flat, flat, (4, 2)))
    assert_same(checkpoints(tmp_path / "g", flat, hybrid, (4, 4)), checkpoints(tmp_path / "e", flat, flat, (4, 4)))


@pytest.mark.parametrize("stage", [2, 3])
def test_models_are_saved_once(stage: int, tmp_path: Path):
    """Catches an export that every group writes, and a background save over a group only."""
    zero = {"stage3_gather_16bit_weights_on_model_save": True}
    settings = config(stage, 2, zero_optimization=zero, zeropage={"async_save": True})

    def loop(engine: Any, rank: int) -> Any:
        micro_steps(engine, rank, range(2))
        engine.save_checkpoint(str(tmp_path / "steps"))
        micro_steps(engine, rank, range(2, 4))
        engine.save_checkpoint(str(tmp_path / "steps"))
        consolidated = engine._zero3_consolidated_16bit_state_dict()
        assert (consolidated is None) == (rank != 0)
        engine.save_16bit_model(tmp_path)

    (_, parameters), *_ = run(settings, loop)
    stored = safetensors.load_file(tmp_path / "model.safetensors")
    names = [name for name, _ in small_net().named_parameters()]
    assert torch.equal(torch.cat([stored[name].flatten() for name in names]), parameters)


@STAGES
def test_memory_is_that_of_a_group(stage: int):
    """Catches state that is divided over all ranks, or over none, and a formula for other numbers."""

    def loop(engine: Any, rank: int) -> Any:
        micro_steps(engine, rank, range(1))
        report = engine.memory_report()
        return [row["optimizer"] for row in report.ranks], report.formula.optimizer

    (counted, formula), _ = run(config(stage, 2), loop)[0]
    (counted_of_two, formula_of_two), _ = run(config(stage), loop, world=2)[0]
    assert counted == counted_of_two * 2 and formula == formula_of_two


@STAGES
def test_replicas_are_equal_after_20_steps(stage: int):
    """Catches replicas whose masters or moments drift apart without a difference in 16-bit parameters."""

    def loop(engine: Any, rank: int) -> Any:
        micro_steps(engine, rank, range(20))
        values: list[torch.Tensor | None] = []
        for parameter in engine.module.parameters():
            values += [
                zeropage.utils.safe_get_local_optimizer_state(parameter, name) for name in ("exp_avg", "exp_avg_sq")
            ]
            values.append(zeropage.utils.safe_get_local_fp32_param(parameter))
        return [None if value is None else value.tolist() for value in values]

    outcomes = run(config(stage, 2, **PRECISIONS["bf16"]), loop)
    for place in (0, 1):
        assert outcomes[place][0] == outcomes[place + 2][0]
        assert torch.equal(outcomes[place][1], outcomes[place + 2][1])


def train_as_process(stage: int, communicator: str) -> tuple[list[float], torch.Tensor, int, int]:
    """Losses and parameters of a rank, its bytes between groups in one update, and the size that it reports."""
    settings = config(stage, 2, zeropage={"communicator": communicator, "page_numel": 10**6})
    engine, *_ = zeropage.initialize(model=small_net(), config=settings)

    def sent() -> int:
        return sum(each.bytes_between_hosts for each in engine._communicators if each is not None)

    losses = micro_steps(engine, engine.global_rank, range(3))
    before = sent()
    losses += micro_steps(engine, engine.global_rank, range(3, 4))
    between = sent() - before
    outcome = losses, flat_parameters(engine.module), between, engine.dp_world_size
    engine.destroy()
    return outcome


@pytest.mark.parametrize(("stage", "communicator"), [(2, "auto"), (3, "auto"), (3, "c10d")])
def test_processes_train_as_threads(stage: int, communicator: str, tmp_path: Path):
    """Catches processes that join other groups, and gathers that leave a group."""
    arguments = json.dumps({"stage": stage, "communicator": communicator})
    ranks = run_processes(4, "test_hybrid_state", "train_as_process", arguments, tmp_path)
    expected = over_all_ranks(4, stage, "fp32")
    for (losses, parameters, _, size), ((losses_there, _), parameters_there) in zip(ranks, expected, strict=True):
        assert losses == losses_there and torch.equal(parameters, parameters_there) and size == 4
    # The ranks of a group send the sums of all gradients, receive the results, and send little else.
    twice_bytes = 2 * 4 * expected[0][1].numel()
    assert twice_bytes <= sum(between for _, _, between, _ in ranks) < 1.15 * twice_bytes


def train_until_killed(folder: str) -> str:
    """A rank that trains until a peer is killed."""
    engine, *_ = zeropage.initialize(model=small_net(), config=config(3, 2))
    rank = engine.global_rank
    return update_until_killed(rank, folder, lambda step: micro_steps(engine, rank, range(step, step + 1)))


def test_a_rank_of_another_group_that_is_killed(tmp_path: Path):
    """Catches survivors of the other group that wait for the timeout, and messages without the group of the rank."""
    messages = messages_after_kill(4, "test_hybrid_state", tmp_path, killed=3)
    assert all(message.startswith("PeerError: ") for message in messages), messages
    # The first reason, which is that of a rank with which it shares a communicator.
    for message in messages:
        named = (
            "among the ranks of group 1, whose rank 0 is rank 2 of the job: ",
            "among ranks 1, 3 of the job, one per group and counted from 0: ",
            "rank 3 of the job",
        )
        assert any(name in message for name in named), message
