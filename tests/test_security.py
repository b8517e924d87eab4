"""What SECURITY.md promises: no command runs code of the current folder, and every read is limited."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_launcher import COMMAND, environment
from test_run_page import RUN, step, write

PLANTED = sorted({*sys.stdlib_module_names, "numpy", "sitecustomize", "torch", "zeropage"} - {"__main__"})


def run(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [COMMAND, *words], cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def planted(tmp_path):
    """A folder with a module for every name that our commands might import; each notes that it ran, and ends the
    process."""
    folder = tmp_path / "planted"
    folder.mkdir()
    for name in PLANTED:
        marker = tmp_path / f"{name}.ran"
        (folder / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()\nimport os\nos._exit(3)\n")
    yield folder
    assert sorted(path.stem for path in tmp_path.glob("*.ran")) == []


@pytest.mark.parametrize(
    "words",
    [
        ("doctor",),
        ("report", "run.jsonl"),
        ("top", "--once", "--interval", "0.1"),
        ("ckpt", "import", "--read_pickle", "deepspeed", "out"),
        ("plan", "1M", "--measure", "--disk_folder", "nowhere"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_no_command_runs_code_of_the_current_folder(words, planted):
    """Catches a torch.py in a folder of another user that runs with the rights of the user who examines a run there."""
    write(planted / "run.jsonl", RUN, step(1))
    checkpoint = planted / "deepspeed"
    (checkpoint / "global_step1").mkdir(parents=True)
    (checkpoint / "latest").write_text("global_step1")
    (checkpoint / "global_step1" / "mp_rank_00_model_states.pt").write_bytes(b"not a pickle")
    done = run(*words, cwd=planted)
    assert done.returncode in (0, 64, 65, 74), done.stderr  # read, or refused: not ended by what was planted


def test_the_users_script_has_its_folder(planted, tmp_path):
    """Catches a safe path where it does not belong: a script's own modules are in its folder."""
    (planted / "own_module.py").write_text("print('own module')\n")
    script = planted / "script.py"
    script.write_text("import own_module\n")
    for path in planted.glob("*.py"):
        if path.name not in ("script.py", "own_module.py"):
            path.unlink()
    done = run("--num_gpus=1", str(script), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "own module\n"), done.stderr


@pytest.mark.parametrize(
    "words", [("config", "/dev/zero"), ("--hostfile", "/dev/zero", "train.py"), ("plan", "config.json")]
)
def test_reads_are_limited(words, tmp_path):
    """Catches a read of what a user names that ends only with the memory."""
    limit = "import resource, os, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); os.execv(sys.argv[1], sys.argv[1:])"
    (tmp_path / "train.py").write_text("")
    (tmp_path / "config.json").symlink_to("/dev/zero")
    command = [sys.executable, "-c", limit, COMMAND, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode in (64, 74), (done.returncode, done.stderr)
    assert words[-1] in done.stderr or "/dev/zero" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_configuration_may_come_through_a_pipe(tmp_path):
    """Catches `zeropage config <(...)` that finds nothing, or only the first piece."""
    command = f'{COMMAND} config <(sleep 0.2; echo "{{\\"train_batch_size\\": 4}}")'
    done = subprocess.run(
        ["bash", "-c", command], env={**os.environ, **environment()}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "train_batch_size" in done.stdout, done.stderr
