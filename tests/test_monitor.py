"""Metrics that a run writes: which, where, by whom, and that a killed run has lost at most its last step."""

import csv
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zeropage
from zeropage import errors
from zeropage.testing import run_ranks

CONFIG = {
    "train_batch_size": 4,
    "zero_optimization": {"stage": 2},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
}


def train(config: dict, steps: int = 3):
    torch.manual_seed(1)
    engine, *_ = zeropage.initialize(model=nn.Linear(3, 1), config={**CONFIG, **config})
    losses = []
    for _ in range(steps):
        loss = engine(torch.ones(engine.train_micro_batch_size_per_gpu(), 3)).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return engine, losses


def rows(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_csv_files(tmp_path):
    """Catches another file name, header or x axis than programs that read DeepSpeed's files expect, and ranks that
    write twice."""
    section = {"csv_monitor": {"enabled": True, "output_path": str(tmp_path), "job_name": "job"}}

    def run(rank: int, communicator):
        engine, losses = train(section)
        assert engine.monitor.enabled == (rank == 0)
        engine.monitor.write_events([("Valid/my loss", 0.5, engine.global_samples)])
        return losses

    losses = run_ranks(2, run)[0]
    folder = tmp_path / "job"
    names = {"Train_Samples_train_loss.csv", "Train_Samples_lr.csv", "Train_Samples_grad_norm.csv", "Valid_my_loss.csv"}
    assert {path.name for path in folder.iterdir()} == names
    assert rows(folder / "Train_Samples_lr.csv") == [["step", "lr"], ["4", "0.01"], ["8", "0.01"], ["12", "0.01"]]
    loss_rows = rows(folder / "Train_Samples_train_loss.csv")
    assert loss_rows[0] == ["step", "train_loss"]
    assert [float(row[1]) for row in loss_rows[1:]] == pytest.approx(losses)
    assert rows(folder / "Valid_my_loss.csv") == [["step", "my loss"], ["12", "0.5"]]


def test_a_run_that_continues_appends(tmp_path):
    """Catches a second run that overwrites the first one's figures or repeats the header."""
    section = {"csv_monitor": {"enabled": True, "output_path": str(tmp_path)}}
    for _ in range(2):
        engine, _ = train(section, steps=1)
        engine.destroy()
        assert not engine.monitor.enabled
    assert len(rows(tmp_path / "DeepSpeedJobName" / "Train_Samples_lr.csv")) == 3


def test_tensorboard_files(tmp_path):
    """Catches event files that TensorBoard reads as other names, steps or values, or only after the run has ended."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    engine, losses = train(
        {
            "fp16": {"enabled": True, "auto_cast": True},
            "tensorboard": {"enabled": True, "output_path": str(tmp_path), "job_name": "job"},
        }
    )
    assert engine.monitor.enabled
    events = EventAccumulator(str(tmp_path / "job"))
    events.Reload()
    names = ("train_loss", "lr", "grad_norm", "loss_scale")
    assert set(events.Tags()["scalars"]) == {f"Train/Samples/{name}" for name in names}
    found = events.Scalars("Train/Samples/train_loss")
    assert [event.step for event in found] == [4, 8, 12]
    assert [event.value for event in found] == pytest.approx(losses, rel=1e-3)


def test_wandb_run(monkeypatch):
    """Catches keys of the section that do not reach wandb, and metrics of one step that are split over several."""
    calls: list[Any] = []

    class Run:
        def log(self, values, step, commit):
            calls.append((step, sorted(values)))

        def finish(self):
            calls.append("finished")

    def init(**options):
        calls.append(options)
        return Run()

    wandb: Any = types.ModuleType("wandb")
    wandb.init = init
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    engine, _ = train({"wandb": {"enabled": True, "team": "us", "group": "g", "project": "p"}}, steps=1)
    engine.destroy()
    names = ["Train/Samples/grad_norm", "Train/Samples/lr", "Train/Samples/train_loss"]
    assert calls == [{"project": "p", "group": "g", "entity": "us"}, (4, names), "finished"]


@pytest.mark.parametrize(("section", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_missing_package_is_named(section, module, monkeypatch):
    """Catches a bare ImportError instead of a line with the package to install."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(errors.ConfigError, match=f"pip install {section}"):
        train({section: {"enabled": True}})


KILLED = """
import json, os, signal, sys, torch, zeropage
config, steps = json.loads(sys.argv[1]), int(sys.argv[2])
engine, *_ = zeropage.initialize(model=torch.nn.Linear(3, 1), config=config)
for step in range(steps):
    engine.backward(engine(torch.ones(4, 3)).square().mean())
    engine.step()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_keeps_its_steps(tmp_path):
    """Catches metrics that wait in a buffer of the process."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sections = {name: {"enabled": True, "output_path": str(tmp_path / name)} for name in ("csv_monitor", "tensorboard")}
    sections["zeropage"] = {"metrics_file": str(tmp_path / "run.jsonl")}
    command = [sys.executable, "-c", KILLED, json.dumps({**CONFIG, **sections}), "5"]
    assert subprocess.run(command, env=os.environ, timeout=60).returncode == -signal.SIGKILL
    assert len(rows(tmp_path / "csv_monitor/DeepSpeedJobName/Train_Samples_train_loss.csv")) == 6
    events = EventAccumulator(str(tmp_path / "tensorboard/DeepSpeedJobName"))
    events.Reload()
    assert len(events.Scalars("Train/Samples/train_loss")) == 5
    records = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["record"] == "step"] == [1, 2, 3, 4, 5]
