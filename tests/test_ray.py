"""The example for Ray Train."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "ray_trainer.py"

pytestmark = pytest.mark.slow


def test_ray_starts_the_ranks(tmp_path: Path):
    """Catches workers of Ray that train separately, or an example that does not run with the command in its first
    lines."""
    command = [sys.executable, str(EXAMPLE), "--workers=2", "--steps=3", f"--output={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "losses.json").read_text())
    assert result["world_size"] == 2 and len(result["losses"]) == 3
