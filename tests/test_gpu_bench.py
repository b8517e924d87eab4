"""`make gpu-bench` on a machine without a GPU: its rows on the CPU, with a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

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


def test_a_spent_budget_is_said():
    """Catches rows that are left out in silence."""
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
    assert done.returncode == 1 and "left out: the budget of 0.0 s is spent" in done.stdout
