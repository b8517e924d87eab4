"""Processes that are killed, stopped and started again, and disks that fill up, at random (process_sweep.py describes
what must hold)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SEED = int(os.environ.get("ZEROPAGE_SWEEP_SEED", "18"))
SECONDS = float(os.environ.get("ZEROPAGE_SWEEP_SECONDS", "45"))


@pytest.mark.slow
def test_whatever_happens_to_processes(tmp_path):
    """Catches a loss that is not plain PyTorch's after some disturbance, an acknowledged step that is lost, and
    processes or files that remain."""
    paths = [str(TESTS), str(TESTS.parent / "examples"), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, str(TESTS / "process_sweep.py"), str(SEED), str(SECONDS), str(tmp_path)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=SECONDS + 300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
