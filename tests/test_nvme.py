"""Optimizer state and parameters on disk: the same bits as in memory, damage that is noticed, and no files that
remain."""

import copy
import functools
import gc
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes, start_ranks
from torch import nn
from training import (
    Outcome,
    config_of,
    flat_parameters,
    part_of_batch,
    small_net,
    token_batch,
    train_engine,
    train_ranks,
)

import zeropage
from zeropage.errors import IoError, UsageError
from zeropage.testing import run_ranks

STEPS = 100
PRECISIONS: dict[str, dict[str, Any]] = {"fp32": {}, "bf16": {"bf16": {"enabled": True}}}


class Tiny(nn.Module):
    """Five layers of 16 x 16: more pages than buffers, and quick enough for a hundred steps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(*(nn.Linear(16, 16) for _ in range(5)))

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """tokens, targets [B, T] -> a mean square."""
        h = self.layers((tokens[:, :1] + torch.arange(16)).float().sin().to(self.layers[0].weight.dtype))
        return (h - targets[:, :1].float().cos()).square().mean()


def config(
    stage: int, folders: Any = None, precision: str = "fp32", parameters: Any = None, **offload: Any
) -> dict[str, Any]:
    """A page per parameter; the optimizer's state in `folders`, or in memory; so are the parameters, with `parameters`
    more keys."""
    zero: dict[str, Any] = {"stage3_max_live_parameters": 512}
    if folders is not None:
        zero["offload_optimizer"] = {"device": "nvme", "nvme_path": folders, "buffer_count": 3, **offload}
    if parameters is not None:
        zero["offload_param"] = {
            "device": "nvme",
            "nvme_path": folders,
            "buffer_count": 3,
            "max_in_cpu": 0,
            **parameters,
        }
    sections: dict[str, Any] = {"aio": {"block_size": 4096, "queue_depth": 4}, "zeropage": {"page_numel": 1}}
    return config_of(stage, zero_optimization=zero, **copy.deepcopy(PRECISIONS[precision]), **sections)


@functools.cache
def in_memory(stage: int, precision: str) -> Outcome:
    return train_ranks(Tiny(), 2, config(stage, precision=precision), STEPS)[0]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_100_steps_on_disk_change_no_bit(stage: int, precision: str, tmp_path: Path):
    """Catches reads of another page, of an older version, or of a page that is not written yet."""
    found = train_ranks(Tiny(), 2, config(stage, str(tmp_path), precision), STEPS)[0]
    assert torch.equal(found.parameters, in_memory(stage, precision).parameters)
    assert found.losses == in_memory(stage, precision).losses
    gc.collect()  # engines are in reference cycles
    assert list(tmp_path.iterdir()) == [], "a file remains"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("parameters", [{}, {"max_in_cpu": 400}])
def test_100_steps_with_parameters_on_disk_change_no_bit(parameters: dict[str, Any], precision: str, tmp_path: Path):
    """Catches parameters of the step before, of another page, or written only in part; with some kept in memory,
    too."""
    found = train_ranks(Tiny(), 2, config(3, str(tmp_path), precision, parameters), STEPS)[0]
    assert torch.equal(found.parameters, in_memory(3, precision).parameters)
    assert found.losses == in_memory(3, precision).losses
    gc.collect()
    assert list(tmp_path.iterdir()) == [], "a file remains"


@pytest.mark.parametrize("offload", [{"ratio": 0.5}, {"buffer_count": 16}])
def test_a_part_on_disk_and_more_buffers_than_pages(offload: dict[str, Any], tmp_path: Path):
    """Catches pages in memory that are read from disk, and buffers that keep an old version. Striped over two
    folders."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    found = train_ranks(Tiny(), 2, config(2, [str(folder) for folder in folders], "bf16", **offload), STEPS)[0]
    assert torch.equal(found.parameters, in_memory(2, "bf16").parameters)


def train_here(folder: str, communicator: str) -> torch.Tensor:
    """Runs in a separate process: the parameters after ten steps at stage 3."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    sections = config(3, folder, "bf16", {})
    sections["zeropage"]["communicator"] = communicator
    engine, *_ = zeropage.initialize(model=Tiny(), config=sections)
    return train_engine(engine, world, rank, 10).parameters


@pytest.mark.parametrize("communicator", ["shared_memory", "c10d"])
def test_processes_share_a_folder(communicator: str, tmp_path: Path):
    """Catches ranks that use each other's files, and gathers from the drive that a transport cannot do."""
    disk, results = tmp_path / "disk", tmp_path / "results"
    disk.mkdir()
    results.mkdir()
    expected = train_ranks(Tiny(), 2, config(3, precision="bf16"), 10)[0].parameters
    arguments = {"folder": str(disk), "communicator": communicator}
    for found in run_processes(2, "test_nvme", "train_here", json.dumps(arguments), results):
        assert torch.equal(found, expected)
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize(("stage", "precision", "parameters"), [(2, "bf16", None), (3, "bf16", {}), (3, "fp32", {})])
def test_written_values_and_checkpoints(stage: int, precision: str, parameters: Any, tmp_path: Path):
    """Catches masters on disk that do not follow what users write, and checkpoints that hold something else than the
    disk."""
    (tmp_path / "disk").mkdir()
    model = small_net()  # once: torch's random generator is shared by threads

    def placed(folder: str | None) -> dict[str, Any]:
        return config(stage, folder, precision, parameters if folder is not None else None)

    def run(folder: str | None, load: Path | None, save: Path | None) -> list[torch.Tensor]:
        def rank_of(rank: int, communicator: Any) -> torch.Tensor:
            engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=placed(folder))
            if load is not None:
                engine.load_checkpoint(str(load))
            train_engine(engine, 2, rank, 3)
            with torch.no_grad():
                for parameter in engine.module.parameters():
                    parameter.clamp_(-0.05, 0.05)
            outcome = train_engine(engine, 2, rank, 2)
            if save is not None:
                engine.save_checkpoint(str(save))
            return outcome.parameters

        return run_ranks(2, rank_of)[0]

    disk = str(tmp_path / "disk")
    first = run(None, None, tmp_path / "memory")
    assert torch.equal(run(disk, None, tmp_path / "saved"), first)
    assert torch.equal(run(None, tmp_path / "saved", None), run(disk, tmp_path / "memory", None))


def files_of_stores(folder: Path) -> list[int]:
    """Descriptors of this process that are open files of stores in a folder."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        target = os.readlink(descriptor) if descriptor.is_symlink() else ""
        if target.startswith(f"{folder}/zeropage-store-") and target.endswith("/state (deleted)"):
            found.append(int(descriptor.name))
    return found


def flip(descriptor: int) -> None:
    """Changes one bit of every 4 KiB."""
    with open(f"/proc/self/fd/{descriptor}", "r+b", buffering=0) as file:
        for offset in range(0, os.fstat(descriptor).st_size, 4096):
            byte = os.pread(file.fileno(), 1, offset)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), offset)
        os.fsync(file.fileno())


DAMAGES = [
    (flip, "are not what was written"),
    (lambda descriptor: os.ftruncate(descriptor, 4096), "the file is too short"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES)
def test_a_damaged_drive_stops_the_step(damage: Any, says: str, tmp_path: Path):
    """Catches damaged values that are used: the step must fail with an error that names the parameter and the file, and
    the engine must refuse to continue."""
    engine, *_ = zeropage.initialize(model=Tiny(), config=config(2, str(tmp_path)))
    train_engine(engine, 1, 0, 2)
    (descriptor,) = files_of_stores(tmp_path)
    damage(descriptor)
    batch = part_of_batch(token_batch(0), 1, 0)
    with pytest.raises(IoError, match=says) as caught:
        for _ in range(2):  # a pass begins with what is still in memory; all of it is read at the latest by the next
            engine.backward(engine(*batch))
            engine.step()
    for part in ("layers.", "page", str(tmp_path), "restart from a checkpoint"):
        assert part in str(caught.value)
    with pytest.raises(UsageError, match="restart from a checkpoint"):
        engine.backward(engine(*batch))


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize(("damage", "says"), DAMAGES)
def test_damaged_parameters_end_the_pass_that_reads_them(damage: Any, says: str, when: str, tmp_path: Path):
    """Catches parameters that are computed with although the drive has changed them, in either pass."""
    engine, *_ = zeropage.initialize(model=Tiny(), config=config(3, str(tmp_path), "bf16", {}))
    batch = part_of_batch(token_batch(0), 1, 0)
    for _ in range(2):
        engine.backward(engine(*batch))
        engine.step()
    loss = engine(*batch) if when == "backward" else None
    for descriptor in files_of_stores(tmp_path):
        damage(descriptor)
    with pytest.raises(IoError, match=says) as caught:
        if loss is None:
            engine(*batch)
        else:
            engine.backward(loss)
    assert str(tmp_path) in str(caught.value) and "layers." in str(caught.value)


def train_for_ever(folder: str, checkpoints: str) -> None:
    """Runs in a process that is killed: saves at step 3 and continues."""
    engine, *_ = zeropage.initialize(model=Tiny(), config=config(3, folder, "bf16", {}))
    train_engine(engine, 1, 0, 3)
    engine.save_checkpoint(checkpoints)
    while True:
        train_engine(engine, 1, 0, 1)


def test_a_killed_job_leaves_nothing_and_continues_from_its_checkpoint(tmp_path: Path):
    """Catches files that remain after a kill, a next start that fails because of them, and state that is read from
    them."""
    disk, checkpoints = tmp_path / "disk", tmp_path / "checkpoints"
    disk.mkdir()
    arguments = json.dumps({"folder": str(disk), "checkpoints": str(checkpoints)})
    (job,) = start_ranks(1, "test_nvme", "train_for_ever", arguments, tmp_path)
    deadline = time.monotonic() + 60
    while not (checkpoints / "latest").exists():
        assert job.poll() is None and time.monotonic() < deadline, "it never saved"
        time.sleep(0.05)
    time.sleep(0.3)
    job.kill()
    job.wait()
    assert [path for path in disk.rglob("*") if not path.is_dir()] == [], "files with names remain"
    engine, *_ = zeropage.initialize(model=Tiny(), config=config(3, str(disk), "bf16", {}))
    assert len(list(disk.iterdir())) == len(files_of_stores(disk)), "what the killed job left is still there"
    engine.load_checkpoint(str(checkpoints))
    expected = train_ranks(Tiny(), 1, config(3, precision="bf16"), 3)[0].parameters
    assert torch.equal(flat_parameters(engine.module), expected)


def test_a_folder_that_is_not_there_is_named_at_the_start(tmp_path: Path):
    """Catches a job that trains for an hour before it checks its drive."""
    with pytest.raises(IoError, match="/none"):
        zeropage.initialize(model=Tiny(), config=config(2, str(tmp_path / "none")))


def test_memory_holds_the_buffers_alone(tmp_path: Path):
    """Catches state that stays in memory, and anything that grows from step to step."""
    engine, *_ = zeropage.initialize(model=small_net(), config=config(2, str(tmp_path)))
    train_engine(engine, 1, 0, 5)
    before = engine.memory_report()
    train_engine(engine, 1, 0, 200)
    after = engine.memory_report()
    assert after.ranks[0] == before.ranks[0] and after.host[0] == before.host[0]
    assert after.host[0]["optimizer"] == 0 and after.ranks[0]["optimizer"] == 0
    largest = max(parameter.numel() for parameter in engine.module.parameters())
    padded = (largest + 4096) * 2 * 4  # two moments; pages are padded
    assert 0 < after.host[0]["buffers"] <= 3 * padded + after.ranks[0]["buffers"]


def test_the_trace_shows_the_work_of_the_drive(tmp_path: Path):
    """Catches a drive that is idle while pages are updated, and a trace that has no row for it."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(8)))
    sections = config(3, str(tmp_path), "fp32", {})
    sections["zeropage"]["trace"] = {"file": str(tmp_path / "trace.json"), "first_step": 3, "steps": 1}
    engine, *_ = zeropage.initialize(model=model, config=sections)
    for _ in range(4):
        engine.backward(engine(torch.ones(8, 512)).square().mean())
        engine.step()
    events = json.loads((tmp_path / "trace.rank0.json").read_text())
    moves: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.get("cat") == "disk":
            moves.setdefault(event["id"], {"name": event["name"]})[event["ph"]] = event["ts"]
    updates = [(event["ts"], event["ts"] + event["dur"]) for event in events if event.get("name") == "update of a page"]
    assert len(updates) == 8
    for what in (
        "read of the optimizer state",
        "write of the optimizer state",
        "read of the gradients",
        "write of the parameters",
    ):
        spans = [(move["b"], move["e"]) for move in moves.values() if move["name"].startswith(what)]
        assert any(begin < end_of and end > begin_of for begin, end in spans for begin_of, end_of in updates), what
    assert any(move["name"].startswith("read of the parameters") for move in moves.values())
