"""Checkpoints through every world size and stage, and from every place where state may be."""

import copy
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoint import PRECISIONS, assert_same_state
from torch import nn
from training import config_of, part_of_batch, small_net, token_batch

import zeropage
from zeropage import _C
from zeropage.errors import UsageError
from zeropage.testing import run_ranks

WORLDS, STAGES = range(1, 9), range(4)
HOST, DRIVE = {"device": "cpu"}, {"device": "nvme", "buffer_count": 3}
TIERS: dict[str, tuple[int, dict[str, dict[str, Any]]]] = {
    "stage0_host": (0, {"offload_optimizer": HOST}),
    "stage1_host": (1, {"offload_optimizer": HOST}),
    "stage2_host": (2, {"offload_optimizer": HOST}),
    "stage3_host": (3, {"offload_optimizer": HOST}),
    "stage3_parameters": (3, {"offload_param": HOST}),
    "stage3_both": (3, {"offload_param": HOST, "offload_optimizer": HOST}),
    "stage0_drive": (0, {"offload_optimizer": DRIVE}),
    "stage1_drive": (1, {"offload_optimizer": DRIVE}),
    "stage2_drive": (2, {"offload_optimizer": DRIVE}),
    "stage3_drive": (3, {"offload_param": HOST, "offload_optimizer": DRIVE}),
    "stage3_all_on_a_drive": (3, {"offload_param": {"device": "nvme", "max_in_cpu": 0}, "offload_optimizer": DRIVE}),
}


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """A folder where a sync costs nothing: the test saves a thousand times."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


class TwoTensors(nn.Module):
    """Sizes that no number of ranks divides, in fewer elements than some shards would have."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(7, 5))
        self.vector = nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x @ self.matrix.t()).float().square().mean() + self.vector.float().square().sum()) * 0.5


def tensors_of(path: Path) -> dict[str, bytes]:
    """Every tensor of a step that belongs to parameters, whole."""
    step = _C.Checkpoint(str(path))
    return {
        name: step.read_tensor(name).view(torch.uint8).numpy().tobytes()
        for name in step.tensor_names()
        if name[:5] != "host/"
    }


def test_every_world_and_stage_loads_every_other(memory_folder):
    """Catches segments that are cut or placed wrongly for some pair of (world, stage); elements that are not loaded
    keep their values of the step before, which are from another training."""
    torch.manual_seed(0)
    model = TwoTensors()

    def engine_at(stage: int, world: int) -> Any:
        options = config_of(stage, batch=840, **PRECISIONS["bf16"], zeropage={"page_numel": 9 + world})
        return zeropage.initialize(model=copy.deepcopy(model), config=options)[0]

    def first(rank: int, communicator: Any) -> None:
        engine = engine_at(2, 2)
        for number in range(2):
            engine.backward(engine(torch.full((1, 5), 1.0 + rank + number, dtype=torch.bfloat16)))
            engine.step()
            engine.save_checkpoint(memory_folder, tag=f"state{number}")

    def save(rank: int, communicator: Any, world: int, stage: int) -> None:
        engine = engine_at(stage, world)
        engine.load_checkpoint(memory_folder, tag=f"state{(world + stage) % 2}")
        engine.save_checkpoint(memory_folder, tag=f"{world}_{stage}")

    def load(rank: int, communicator: Any, world: int, stage: int) -> None:
        engine = engine_at(stage, world)
        for source_world, source_stage in sources:
            engine.load_checkpoint(memory_folder, tag=f"{source_world}_{source_stage}")
            engine.save_checkpoint(memory_folder, tag="again")
            if rank == 0:
                expected = states[(source_world + source_stage) % 2]
                assert tensors_of(memory_folder / "again") == expected, (
                    f"{source_world}, {source_stage} to {world}, {stage}"
                )
            communicator.barrier()

    run_ranks(2, first)
    states = [tensors_of(memory_folder / f"state{number}") for number in range(2)]
    assert len(states[0]) == 8 and all(states[0][name] != states[1][name] for name in states[0])
    sources = [(world, stage) for world in WORLDS for stage in STAGES]
    for world, stage in sources:
        run_ranks(world, lambda rank, communicator: save(rank, communicator, world, stage))
    for world, stage in sources:
        run_ranks(world, lambda rank, communicator: load(rank, communicator, world, stage))


@pytest.mark.parametrize("precision", ("fp32", "bf16"))
@pytest.mark.parametrize("tier", TIERS)
def test_resume_on_every_tier_continues_with_the_same_bits(tmp_path, tier, precision):
    """Catches state on the host or a drive that is not saved, not restored, or mixed up with what was read ahead; and a
    save between the micro steps of an update, which nothing could resume."""
    stage, offload = copy.deepcopy(TIERS[tier])

    def engine_at(name: str, communicator: Any) -> Any:
        sections = copy.deepcopy(offload)
        folder = tmp_path / f"drive_{name}"
        folder.mkdir(exist_ok=True)
        for section in sections.values():
            if section["device"] == "nvme":
                section["nvme_path"] = str(folder)
        options = config_of(
            stage,
            batch=8,
            accumulation=2,
            zero_optimization=sections,
            zeropage={"page_numel": 1},
            **copy.deepcopy(PRECISIONS[precision]),
        )
        return zeropage.initialize(model=copy.deepcopy(models[name]), config=options)[0]

    def micro_step(engine: Any, rank: int, step: int, micro: int) -> float:
        loss = engine(*part_of_batch(token_batch(step), 2, rank, micro, 2))
        engine.backward(loss)
        engine.step()
        return loss.item()

    def train(engine: Any, rank: int, steps: range) -> list[float]:
        return [micro_step(engine, rank, step, micro) for step in steps for micro in range(2)]

    def run(rank: int, communicator: Any) -> None:
        engine = engine_at("first", communicator)
        train(engine, rank, range(2))
        micro_step(engine, rank, 2, 0)
        with pytest.raises(UsageError, match="no step has used"):
            engine.save_checkpoint(tmp_path / "steps")
        micro_step(engine, rank, 2, 1)
        engine.save_checkpoint(tmp_path / "steps")
        expected = train(engine, rank, range(3, 5))
        engine.save_checkpoint(tmp_path / "ends", tag="straight")
        resumed = engine_at("other", communicator)
        micro_step(resumed, rank, 0, 0)  # the gradients of this update are dropped
        resumed.load_checkpoint(tmp_path / "steps")
        assert (resumed.global_steps, resumed.micro_steps) == (3, 6)
        assert train(resumed, rank, range(3, 5)) == expected
        resumed.save_checkpoint(tmp_path / "ends", tag="resumed")

    models = {"first": small_net(0), "other": small_net(1)}
    run_ranks(2, run)
    assert_same_state(str(tmp_path / "ends" / "straight"), str(tmp_path / "ends" / "resumed"))
