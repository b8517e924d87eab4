"""Files that monitors append to: on full disks, after kills, and with content of other programs. Training never ends
because of them."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_monitor import CONFIG, train

from zeropage.tools import run_page

FULL = """
import json, resource, sys, torch, zeropage
engine, *_ = zeropage.initialize(model=torch.nn.Linear(3, 1), config=json.loads(sys.argv[1]))
for step in range(int(sys.argv[2])):
    if step == 3:  # from now on each file is as if its disk were full
        limit = int(sys.argv[3])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    engine.backward(engine(torch.ones(4, 3)).square().mean())
    engine.step()
print("steps", engine.global_steps)
engine.destroy()
"""


def sections(folder: Path) -> dict:
    monitors = {name: {"enabled": True, "output_path": str(folder / name)} for name in ("csv_monitor", "tensorboard")}
    return {**CONFIG, **monitors, "zeropage": {"metrics_file": str(folder / "run.jsonl")}}


def run_limited(folder: Path, steps: int, limit: int) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", FULL, json.dumps(sections(folder)), str(steps), str(limit)]
    return subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=120)


def test_a_full_disk_ends_no_training(tmp_path):
    """Catches metrics whose disk is full that end the training, a warning at every step, and half lines in the
    files."""
    done = run_limited(tmp_path, steps=30, limit=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "steps 30\n"
    warnings = [line for line in done.stderr.splitlines() if "metrics cannot be written" in line]
    for path in ("run.jsonl", "Train_Samples_lr.csv", "Train_Samples_train_loss.csv", '"tensorboard"'):
        assert sum(path in line for line in warnings) == 1, done.stderr
    assert "lines of metrics could not be written" in done.stderr
    assert [
        r["step"] for r in map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines()) if r["record"] == "step"
    ] == [1, 2, 3]
    text = (tmp_path / "csv_monitor/DeepSpeedJobName/Train_Samples_train_loss.csv").read_bytes()
    assert text.endswith(b"\r\n") and all(len(row) == 2 for row in csv.reader(text.decode().splitlines()))


def test_a_run_continues_after_a_line_that_a_kill_cut_off(tmp_path):
    """Catches the first record of a restart that is appended to an incomplete line, so that both are lost."""
    train(sections(tmp_path), steps=2)[0].destroy()
    files = [tmp_path / "run.jsonl", *(tmp_path / "csv_monitor/DeepSpeedJobName").iterdir()]
    assert len(files) == 4
    for path in files:
        path.write_bytes(path.read_bytes()[:-5])
    train(sections(tmp_path), steps=2)[0].destroy()
    run = run_page.read_run(tmp_path / "run.jsonl")
    assert run.skipped == [] and run.begun == 2 and [step["step"] for step in run.steps] == [1, 2]
    for path in files[1:]:
        samples = [row[0] for row in csv.reader(path.read_text().splitlines())]
        assert samples == ["step", "4", "4", "8"], "the incomplete row is gone, and the others are whole"


def test_a_path_that_cannot_be_used_is_reported_at_once(tmp_path):
    """Catches a mistake in the configuration that is noticed hours later, when somebody needs the file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        train({"zeropage": {"metrics_file": str(tmp_path / "file" / "run.jsonl")}}, steps=1)


def test_a_monitor_of_another_package_ends_no_training(monkeypatch, capfd):
    """Catches a service that cannot be reached and ends the training, or is reported at every step."""
    engine, _ = train({"csv_monitor": {"enabled": True, "output_path": os.devnull[:4] + "/shm/none"}}, steps=0)
    monkeypatch.setattr(
        engine.monitor, "_writers", {"wandb": type("Writer", (), {"write_events": lambda self, events: 1 / 0})()}
    )
    for _ in range(3):
        engine.monitor.write_events([("x", 1.0, 1)])
    assert capfd.readouterr().err.count('"wandb": metrics cannot be written: ZeroDivisionError') == 1
