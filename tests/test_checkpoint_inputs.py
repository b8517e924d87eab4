"""Checkpoints whose bytes are intact and whose values make no sense: saves refuse them, and loads refuse them with the
name of the value before anything has changed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoint import engine_of, train
from training import flat_parameters

from zeropage import checkpoint
from zeropage.errors import CheckpointError

ZEROPAGE = os.environ.get("ZEROPAGE_COMMAND", str(Path(__file__).resolve().parents[1] / "build" / "dev" / "zeropage"))


def save_with(engine: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Saves with other values in what Python adds to the manifest."""
    original = engine._host_state
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_host_state", lambda *arguments: original(*arguments) | changes)
        engine.save_checkpoint(folder)


@pytest.mark.parametrize(
    "changes",
    (
        {"groups": 7},
        {"groups": [{"dict": [[1, 2]]}]},
        {"client": {"tuple": 3}},
        {"client": {"number": "many"}},
        {"client": {"tensor": "none"}},
        {"client": {"dict": [[[1], 2]]}},
        {"buffers": {"dict": [["mean", 1]]}},
        {"optimizer": 5},
    ),
)
def test_what_no_reader_can_load_is_not_saved(tmp_path, monkeypatch, changes):
    """Catches a form with which loading fails in Python, and that `ckpt verify`, which uses the same check, accepts."""
    engine = engine_of(0, stage=0)
    with pytest.raises(CheckpointError, match=f"host.{next(iter(changes))}: expected"):
        save_with(engine, tmp_path, monkeypatch, **changes)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_values_that_fit_nothing_are_refused_before_anything_changes(tmp_path, monkeypatch):
    """Catches a TypeError or ValueError from within a load, and a model that is half loaded when the generators' states
    are refused."""

    def refused(message: str) -> None:
        engine = engine_of(1, stage=0)
        before = flat_parameters(engine.module)
        with pytest.raises(CheckpointError, match=message):
            engine.load_checkpoint(tmp_path)
        assert torch.equal(flat_parameters(engine.module), before) and engine.global_steps == 0

    engine = engine_of(0, stage=0)
    train(engine, 1, 0, range(1))
    values: tuple[Any, ...] = ("fast", None, {"dict": []}, [0.1, 0.2])
    for value in values:
        save_with(engine, tmp_path, monkeypatch, groups=[{"dict": [["lr", value]]}])
        refused("parameter group 0 has lr=.*, the checkpoint .*, which is no such value")
    save_with(engine, tmp_path, monkeypatch, groups=[{"dict": [["betas", {"tuple": [0.9]}]]}])
    refused("parameter group 0 has betas=")
    for name in ("torch", "python"):
        states = checkpoint.random_states(engine.device) | {name: torch.zeros(3, dtype=torch.uint8)}
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "random_states", lambda device, states=states: states)
            engine.save_checkpoint(tmp_path)
        refused(f"state of the {name} random generator cannot be used")


def test_a_second_job_is_refused_by_name(tmp_path):
    """Catches two jobs that remove each other's steps, though both succeed; and a folder that is still locked when its
    job has ended."""
    script = (
        "import sys, torch, zeropage\n"
        "engine, *_ = zeropage.initialize(model=torch.nn.Linear(2, 2), config={'train_batch_size': 1, 'optimizer': {'type': 'SGD', "
        "'params': {'lr': 0.1}}})\n"
        "engine.save_checkpoint(sys.argv[1], 'other')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    engine = engine_of(0, stage=0, own={"keep_last": 1})
    engine.save_checkpoint(tmp_path, "mine")
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (
        second.returncode != 0
        and f"process {os.getpid()} on " in second.stderr
        and "Save into another folder" in second.stderr
    )
    assert {path.name for path in tmp_path.iterdir()} - {"zero_to_fp32.py"} == {".lock", "latest", "mine"}
    engine.destroy()
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert second.returncode == 0, second.stderr
    third = engine_of(0, stage=0, own={"keep_last": 1})  # another run: it keeps the steps of the others
    third.save_checkpoint(tmp_path, "new")
    listed = json.loads(
        subprocess.run(
            [ZEROPAGE, "ckpt", "ls", "--json", str(tmp_path)], capture_output=True, text=True, timeout=60
        ).stdout
    )
    assert [step["tag"] for step in listed] == ["new", "other", "mine"]
