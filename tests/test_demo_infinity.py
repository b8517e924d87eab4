"""`make demo-infinity` with a small model: its limit on memory works, and it prints the promised figures."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from memory_limit import MemoryLimit, memory_limit  # noqa: E402


def figure_in(pattern: str, text: str) -> float:
    """The number that the pattern's group matches."""
    found = re.search(pattern, text)
    assert found is not None, text
    return float(found[1])


def test_a_process_beyond_the_limit_is_killed():
    """Catches a limit without effect."""
    with memory_limit(64 << 20) as limit:
        if type(limit) is MemoryLimit:
            pytest.skip("this user may make no memory cgroup")
        command = [sys.executable, "-c", "print(len(bytes(b'1') * (200 << 20)))"]
        assert subprocess.run(command, preexec_fn=limit.enter).returncode == -signal.SIGKILL
        assert limit.peak_bytes() > 60 << 20
    with memory_limit(256 << 20) as limit:
        assert subprocess.run(command, preexec_fn=limit.enter, stdout=subprocess.DEVNULL).returncode == 0


def test_a_small_model(tmp_path: Path):
    """Catches a demo that cannot run, and bytes on the drive that are not those of the formula."""
    command = [
        sys.executable,
        str(EXAMPLES / "demo_infinity.py"),
        f"--folder={tmp_path}",
        "--layers=6",
        "--width=256",
        "--steps=3",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "this is not what it should show" in done.stderr, done.stderr  # its state is not ten times the limit
    for word in ("model", "memory", "limit", "loss", "read", "written", "drive", "endurance"):
        assert re.search(rf"^{word} ", done.stdout, re.MULTILINE), done.stdout
    written = figure_in(r"written .*?, ([\d.]+) bytes per parameter", done.stdout)
    assert 17.5 <= written <= 18.6
    read = figure_in(r"read .*?, ([\d.]+) bytes per parameter", done.stdout)
    assert 16 <= read <= 20.6
    assert list(tmp_path.iterdir()) == []
