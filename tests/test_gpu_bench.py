"""`make gpu-bench` and `make gpu-test` on a machine without a GPU: the rows on the CPU and on the simulated device,
with a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerator
import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_rows_agree_on_the_loss():
    """Catches a row that cannot run, and one that trains something else than the others."""
    rows = [
        "plain, bf16 with fp32 masters",
        "stage 3",
        "stage 2, optimizer on the host, updated on the device",
        "FSDP2",
    ]
    command = [
        sys.executable,
        str(ROOT / "bench" / "gpu.py"),
        "--device",
        "cpu",
        "--models",
        "tiny",
        "--budget_s",
        "300",
        "--rows",
        *rows,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    results = {
        row["row"]: row
        for line in done.stdout.splitlines()
        if line.startswith('{"bench": "gpu"')
        for row in [json.loads(line)]
    }
    assert set(results) == set(rows)
    for name, row in results.items():
        assert "ms" in row, f"{name}: {row}"
        assert abs(row["first_loss"] - results[rows[0]]["first_loss"]) < 0.02, name
        assert abs(row["last_loss"] - results[rows[0]]["last_loss"]) < 0.05, name
    assert results[rows[0]]["last_loss"] < results[rows[0]]["first_loss"] - 0.1


def test_a_spent_budget_is_reported():
    """Catches rows that are silently left out."""
    command = [
        sys.executable,
        str(ROOT / "bench" / "gpu.py"),
        "--device",
        "cpu",
        "--models",
        "tiny",
        "--budget_s",
        "0",
        "--rows",
        "stage 0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "left out: the budget of 0.0 s is used up" in done.stdout


@pytest.mark.parametrize("script", ["gpu_test.sh", "gpu_bench.sh"])
def test_without_a_gpu_one_line_says_so(script: str):
    """Catches a script that continues without a GPU, and measures or tests nothing."""
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([ROOT / "tools" / script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpu-build: ") and "run this on a machine with a GPU" in line


def test_no_accelerator_is_an_error():
    """Catches a measurement that succeeds and has measured nothing."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "bench" / "gpu.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "there is no accelerator on this machine" in done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize(
    "row",
    [
        "plain, bf16 with fp32 masters",
        "stage 0",
        "stage 3",
        "stage 2, optimizer on the host, updated on the device",
    ],
)
def test_a_row_on_the_accelerator(row: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Catches a row, or the measurement around it, that only works on the CPU or only on CUDA."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import gpu

    monkeypatch.setattr(gpu, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(gpu, "STEPS", 2)
    gpu.run_row("tiny", row, accelerator.device(), profiled=False)
    figures: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["row"] == row and figures["ms"] > 0 and figures["peak_allocated_bytes"] > 0
    assert figures["last_loss"] < figures["first_loss"]


@pytest.mark.gpu
def test_the_machine_is_measured(monkeypatch: pytest.MonkeyPatch):
    """Catches rates of copies that only the CPU, or only CUDA, has the functions for."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import gpu_machine

    monkeypatch.setattr(gpu_machine, "ROUNDS", 1)
    found = gpu_machine.measure(accelerator.device(), size_bytes=1 << 20)
    links = {f"to_{place}_{kind}" for place in ("device", "host") for kind in ("pageable", "pinned")}
    assert links | {"device_copy", "host_copy"} <= set(found)
