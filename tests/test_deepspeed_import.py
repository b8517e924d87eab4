"""Checkpoints made by a real DeepSpeed (tests/make_deepspeed_checkpoints.py) become steps from which training resumes
as DeepSpeed's did."""

import copy
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from make_deepspeed_checkpoints import (
    ACCUMULATION,
    ARCHIVE,
    CASES,
    SAVED_AFTER,
    STEPS,
    WORLD,
    Model,
    config_of,
    groups_of,
    train,
)

import zeropage
from zeropage.compat.deepspeed_import import import_step, main
from zeropage.compat.pickle_process import PickleProcess
from zeropage.errors import CheckpointError, ConfigError
from zeropage.testing import run_ranks

COMMAND = os.environ.get("ZEROPAGE_COMMAND", str(Path(__file__).resolve().parents[1] / "build" / "dev" / "zeropage"))
# In bf16 DeepSpeed adds up in bf16, and at stage 3 its linear layers round once more.
TOLERANCE = {"fp32": 1e-6, "bf16": 2e-3, "fp16": 1e-6}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("deepspeed")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def reader() -> Iterator[PickleProcess]:
    with PickleProcess() as process:
        yield process


def model_with_other_values() -> Model:
    torch.manual_seed(1)
    model = Model()
    model.scale.fill_(0.0)
    return model


@pytest.mark.parametrize("name", CASES)
def test_training_continues_as_in_deepspeed(tmp_path, recorded, reader, name):
    """Catches parts that are joined wrongly, moments at other parameters, and a schedule, scale or counter that starts
    again."""

    def run(rank: int, communicator: Any) -> list[float]:
        module = copy.deepcopy(model)
        options = {**config_of(case), "zeropage": {"timeout_ms": 20_000}}
        options["zero_optimization"].pop("elastic_checkpoint", None)
        engine, *_ = zeropage.initialize(
            model=module, config=options, model_parameters=groups_of(module, case.get("groups", 1))
        )
        path, client = engine.load_checkpoint(tmp_path)
        assert path == str(tmp_path / f"global_step{SAVED_AFTER}")
        assert client == {"epoch": 3, "best": (1.5, "two")}
        assert (engine.global_steps, engine.module.scale.item()) == (SAVED_AFTER, 1.5)
        losses = train(engine, rank, range(SAVED_AFTER, STEPS))
        assert engine.loss_scale() == (
            256 if name == "fp16_stage2" else 1
        )  # it started at 64, and rises with the updates 4 and 7
        return losses

    case, model = CASES[name], model_with_other_values()
    _, notes = import_step(recorded / name / f"global_step{SAVED_AFTER}", tmp_path, reader)
    assert notes == []
    found = run_ranks(WORLD, run)
    for rank in range(WORLD):
        expected = json.loads((recorded / name / f"losses{rank}.json").read_text())
        # An update that raises the loss scale DeepSpeed divides by the new one: its last losses are of a gradient of
        # half the size.
        comparable = slice(-ACCUMULATION if name == "fp16_stage2" else None)
        assert found[rank][comparable] == pytest.approx(expected[comparable], rel=TOLERANCE[name[:4]])


class Exploit:
    """Unpickled by pickle it would write a file. (subprocess.call; torch.save writes the name that Python 2 had for
    it.)"""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return subprocess.call, (["touch", str(self.path)],)


class Settings:
    def __init__(self):
        self.rate = 3


def test_pickles_run_nothing(tmp_path):
    """Catches code in a file that is run, objects that hide tensors, things that only look like tensors, and a reader
    that fails without an error for its caller."""
    values = {
        "a": torch.arange(6.0).view(2, 3),
        "settings": Settings(),
        "run": Exploit(tmp_path / "made"),
        "b": [1, (2, None)],
    }
    torch.save(values, tmp_path / "file.pt")
    (tmp_path / "broken.pt").write_bytes((tmp_path / "file.pt").read_bytes()[:-30])
    torch.save({"os": os.getcwd}, tmp_path / "system.pt")
    torch.save(torch.zeros(1).expand(10**12), tmp_path / "large.pt")
    with PickleProcess() as reader:
        found = reader.open(tmp_path / "file.pt")
        assert torch.equal(found["a"].read(2, 5), torch.tensor([2.0, 3.0, 4.0])) and found["a"].shape == (2, 3)
        assert found["settings"] == {
            "foreign class": "test_deepspeed_import.Settings",
            "arguments": (),
            "state": {"rate": 3},
        }
        assert found["run"]["foreign class"] == "commands.call" and found["b"] == [1, (2, None)]
        with pytest.raises(CheckpointError, match="reading .*broken.pt: "):
            reader.open(tmp_path / "broken.pt")
        with pytest.raises(CheckpointError, match="system.pt: .*blocked"):
            reader.open(tmp_path / "system.pt")
        with pytest.raises(CheckpointError, match="large.pt: .*in 4 bytes repeats"):
            reader.open(tmp_path / "large.pt")
        assert torch.equal(found["a"].read(0, 1), torch.tensor([0.0]))
        reader._process.kill()
        with pytest.raises(CheckpointError, match="the process that reads the file ended with code -9"):
            reader.open(tmp_path / "file.pt")
    assert not (tmp_path / "made").exists()


def test_the_command(tmp_path, recorded):
    """Catches pickles that are read without being asked for, errors without their exit codes, and a step that other
    tools do not read."""

    def command(*arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}  # which Python the command takes
        return subprocess.run(
            [COMMAND, "ckpt", *arguments], env=environment, capture_output=True, text=True, timeout=60
        )

    source = str(recorded / "bf16_stage3")
    refused = command("import", source, str(tmp_path))
    assert (refused.returncode, list(tmp_path.iterdir())) == (64, []) and "--read_pickle" in refused.stderr
    done = command("import", "--read_pickle", source, str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path}/global_step{SAVED_AFTER}\n", "")
    assert "intact" in command("verify", str(tmp_path)).stdout
    assert "import" in command("--help").stdout


def test_other_files_are_refused(tmp_path, recorded, reader):
    """Catches ranks that are missing, other kinds of parallelism, and flat tensors that are too short for their
    parameters."""
    source = recorded / "fp32_stage2" / f"global_step{SAVED_AFTER}"
    rank0, rank1 = (f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2))
    model = "mp_rank_00_model_states.pt"
    cases: dict[str, dict[str, Any]] = {
        "expected DeepSpeed's .*, found none": {rank0: None, rank1: None},
        r"of the ranks \[1\]; some are missing": {rank0: None},
        "saved by 2 ranks, with optimizer states of 1": {rank1: None},
        "only data parallel": {model: lambda state: state.update(mp_world_size=2)},
        "expected a list under 'param_shapes'": {model: lambda state: state.pop("param_shapes")},
        "'expand.weight' should be at": {
            model: lambda state: state["param_shapes"][0].update({"expand.weight": (70, 5)})
        },
        "do not have DeepSpeed's layout.*AttributeError": {model: lambda state: state.update(module=[1, 2])},
        "do not have DeepSpeed's layout.*TypeError": {model: lambda state: state.update(buffer_names=5)},
        "do not have DeepSpeed's layout.*IndexError": {
            model: lambda state: state["param_shapes"].append({"more": (1,)})
        },
    }
    for number, (message, changes) in enumerate(cases.items()):
        changed_copy(source, tmp_path / str(number), changes)
        with pytest.raises(CheckpointError, match=message):
            import_step(tmp_path / str(number), tmp_path / "out", reader)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tag", ["../other", "a/../../other", "..", ".", "", "a\x1b[31m"])
def test_a_tag_that_leads_out_of_the_folder_is_refused(tmp_path, tag):
    """Catches a step that is read from another folder because `latest`, which another program may have written, or
    --tag names a path."""
    (tmp_path / "other").mkdir()
    folder = tmp_path / "deepspeed"
    folder.mkdir()
    (folder / "latest").write_text(tag)
    for arguments, named_by in (([], r"deepspeed/latest: the tag"), (["--tag", tag], r"--tag: the tag")):
        with pytest.raises(ConfigError, match=named_by) as refused:
            main(["--read_pickle", str(folder), str(tmp_path / "out"), *arguments])
        assert "\x1b" not in str(refused.value)


def changed_copy(source: Path, target: Path, changes: dict[str, Any]) -> None:
    """The step with some files changed, or left out (None)."""
    target.mkdir()
    for path in source.iterdir():
        change = changes.get(path.name, lambda state: None)
        if change is None:
            continue
        if path.name in changes:
            state = torch.load(path, weights_only=True)
            change(state)
            torch.save(state, target / path.name)
        else:
            (target / path.name).write_bytes(path.read_bytes())
