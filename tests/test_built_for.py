"""The package under another torch than the one it was built for."""

import subprocess
import sys
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parent.parent / "python" / "zeropage"


def test_another_torch_is_an_error_that_says_what_to_do(tmp_path):
    """Catches a C++ module that is loaded with another torch, where it crashes, and an error without both versions or
    the command."""
    package = tmp_path / "zeropage"
    package.mkdir()
    for file in PACKAGE.iterdir():
        if file.name not in ("_C.so", "built_for.txt"):
            (package / file.name).symlink_to(file)
    (package / "_C.so").write_bytes(b"loading this fails")
    (package / "built_for.txt").write_text("2.1.7+cpu\n")
    # Through links Python would import the package with the right version.
    for name in ("__init__.py", "built_for.py"):
        text = (package / name).read_text()
        (package / name).unlink()
        (package / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", "import zeropage"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"built for torch 2.1.7+cpu, and this is torch {torch.__version__}" in done.stderr
    assert "pip install --force-reinstall --no-deps ." in done.stderr and "pip install torch==2.1.7" in done.stderr
