"""transformers' Trainer with `deepspeed` in its arguments: the same losses, norms and weights as the same script under
plain DDP."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from processes import free_port, run_processes
from safetensors.torch import load_file
from tiny import PLAIN, assert_alike

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_alias")]


def test_trainer_at_every_stage(tmp_path: Path):
    """Catches names that transformers and Accelerate import and miss, wrong "auto" values, and losses,
    norms, rates or weights that differ from plain DDP."""
    for rank in run_processes(
        2, "trainer_runs", "train_everywhere", json.dumps({"folder": str(tmp_path)}), tmp_path, timeout_s=240
    ):
        rates = {name: run.pop("learning_rate") for name, run in rank.items()}
        assert_alike(rank)
        for name, logged in rates.items():  # with `deepspeed` the Trainer reads the rate of the next step
            assert name == PLAIN or logged[:-1] == pytest.approx(rates[PLAIN][1:]), name


def test_the_example_trains(tmp_path: Path):
    """Catches an example that does not run under the launcher with the command in its first lines, or whose saved model
    is not the trained one."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command += [str(ROOT / "examples" / "hf_trainer.py"), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"'loss': '?([\d.]+)", done.stdout)]
    assert len(losses) == 3 and losses[-1] < losses[0] - 0.5, done.stdout
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights["model.embed_tokens.weight"].shape == (256, 64)


def test_the_alias_is_installed_and_removed(tmp_path: Path):
    """Catches an alias that replaces DeepSpeed itself, that pip does not know as installed, or whose files remain."""
    venv.create(tmp_path / "venv", with_pip=False)
    site = next((tmp_path / "venv" / "lib").glob("python3*")) / "site-packages"
    paths = [str(ROOT / "python"), sysconfig.get_path("purelib")]

    def run(*arguments: str, check: bool = True) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(
            [tmp_path / "venv/bin/python", *arguments], capture_output=True, text=True, env=environment, timeout=60
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    before = set(site.iterdir())
    ask = "import deepspeed, importlib.metadata as m; print(deepspeed.initialize.__module__, m.version('deepspeed'), deepspeed.__version__)"
    run("-m", "zeropage", "alias", "install")
    assert run("-c", ask).split() == ["zeropage.initialize", "0.18.9", "0.18.9"]
    assert "is zeropage's" in run("-m", "zeropage", "alias", "status")
    run("-m", "zeropage", "alias", "remove")
    assert set(site.iterdir()) == before
    (site / "deepspeed-0.17.0.dist-info").mkdir()
    (site / "deepspeed-0.17.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.17.0\n"
    )
    assert "DeepSpeed 0.17.0 is installed here" in run("-m", "zeropage", "alias", "install", check=False)
    assert len(set(site.iterdir()) - before) == 1
