"""The exit code of a rank that ends with an error of the package, and how the launcher reacts to it."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from zeropage import errors, exit_codes

ROOT = Path(__file__).resolve().parent.parent
COMMAND = os.environ.get("ZEROPAGE_COMMAND", str(ROOT / "build" / "dev" / "zeropage"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 64),
        (errors.UsageError("x"), 64),
        (errors.CheckpointError("x"), 65),
        (errors.IoError("x"), 74),
        (errors.PeerError("x"), 75),
        (errors.TimeoutError("x"), 75),
        (type("OfTheScript", (errors.PeerError,), {})("x"), 75),
        (errors.ZeropageError("x"), 1),
        (TimeoutError("x"), 1),
    ],
)
def test_code_of_an_error(error, code):
    """Catches an error whose exit code makes the launcher start a job again without reason, or not start it again."""
    assert exit_codes.exit_code(error) == code


def test_a_lost_peer_lets_the_launcher_start_the_job_again(tmp_path):
    """Catches a PeerError with the exit code of any other error, a traceback that is lost, and an end without its exit
    handlers."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import atexit, os, zeropage
            atexit.register(print, "left well")
            if os.environ["ZEROPAGE_RESTART_COUNT"] == "0":
                raise zeropage.errors.PeerError("rank 7 is gone")
            raise zeropage.errors.CheckpointError("digest")
            """
        )
    )
    package = os.pathsep.join([str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": package, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [COMMAND, "--num_gpus=1", "--max_restarts=5", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 65, done.stderr
    assert done.stdout.count("left well") == 2
    assert "in <module>" in done.stderr and "PeerError: rank 7 is gone" in done.stderr


def test_only_processes_that_a_launcher_started_are_changed():
    """Catches a hook in a notebook or a user's own program, where it would end the interpreter."""
    script = """
        import importlib, os, sys
        before = sys.excepthook
        import zeropage
        alone = sys.excepthook is before
        os.environ["RANK"] = "0"
        importlib.reload(zeropage)
        print(alone, sys.excepthook is before)
    """
    environment = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
    }
    shown = subprocess.check_output([sys.executable, "-c", textwrap.dedent(script)], env=environment, text=True)
    assert shown.split() == ["True", "False"]
