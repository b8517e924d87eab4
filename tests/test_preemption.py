"""SIGTERM: the current step ends, there is a checkpoint, the exit code is 0; and a job that is started again continues
from it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import output_of
from training import config_of, small_net, train_engine

import zeropage
from zeropage.testing import run_ranks

SCRIPT = """
import json, os, signal, sys, time
import torch
sys.path[:0] = {paths!r}
from training import config_of, part_of_batch, small_net, token_batch
import zeropage
torch.set_num_threads(1)
folder, die_at = sys.argv[1], int(sys.argv[2])
own = {{"preemption_folder": folder, "preemption_grace_s": {grace_s}}} if {preemptible} else {{}}
engine, *_ = zeropage.initialize(model=small_net(0), config=config_of(2, zeropage=own))
engine.load_checkpoint(folder)
first = engine.global_steps
for step in range(first, {steps}):
    loss = engine(*part_of_batch(token_batch(step), engine.world_size, engine.global_rank))
    engine.backward(loss)
    if step == die_at and first == 0 and engine.global_rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    engine.step()
    print(f"step {{engine.global_steps}} of {{first}}+ loss {{loss.item():.9e}}", flush=True)
    if not {preemptible}:
        engine.save_checkpoint(folder)
    {after_step}
"""


def launch(
    tmp_path: Path,
    *options: str,
    ranks: int = 2,
    die_at: int = -1,
    steps: int = 6,
    preemptible: bool = False,
    grace_s: float = 20,
    after_step="pass",
):
    script = tmp_path / "script.py"
    paths = [str(Path(__file__).resolve().parent)]
    script.write_text(
        SCRIPT.format(paths=paths, steps=steps, preemptible=preemptible, grace_s=grace_s, after_step=after_step)
    )
    command = os.environ.get("ZEROPAGE_COMMAND", "zeropage")
    arguments = [
        command,
        f"--num_gpus={ranks}",
        "--no_local_rank",
        *options,
        str(script),
        str(tmp_path / "ckpt"),
        str(die_at),
    ]
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def straight_losses(steps: int) -> list[set[str]]:
    """The losses of the same run without a kill, on ranks that are threads; per step, those of both ranks."""

    def run(rank: int, communicator: Any) -> list[str]:
        return [
            f"{loss:.9e}"
            for loss in train_engine(
                zeropage.initialize(model=models[rank], config=config_of(2))[0], 2, rank, steps
            ).losses
        ]

    models = [small_net(0), small_net(0)]
    return [set(losses) for losses in zip(*run_ranks(2, run), strict=True)]


def test_a_killed_job_is_started_again_and_continues_with_the_same_losses(tmp_path):
    """Catches a restart from the beginning, from half a step, or with other numbers."""
    job = launch(tmp_path, "--max_restarts=1", die_at=3)
    output = job.communicate(timeout=120)[0]
    assert job.returncode == 0, output
    assert "starting the job again (1 of 1)" in output and "step 4 of 3+" in output and "step 4 of 0+" not in output, (
        output
    )
    for step, expected in enumerate(straight_losses(6), 1):
        assert set(re.findall(rf"step {step} of \d\+ loss (\S+)", output)) == expected, output


def wait_for(process: subprocess.Popen, text: str) -> str:
    seen = ""
    for line in output_of(process):
        seen += line
        if text in line:
            return seen
    raise AssertionError(seen)


@pytest.mark.parametrize("to", ("launcher", "rank"))
def test_sigterm_saves_and_ends_without_an_error(tmp_path, to):
    """Catches a rank that does not learn of the signal that another one got, a step that is cut off, and a wrong exit
    code."""
    job = launch(tmp_path, steps=10_000, preemptible=True, after_step='print("pid", os.getpid(), flush=True)')
    seen = wait_for(job, "[rank 1] pid")
    rank = int(seen.split("[rank 1] pid")[1].split()[0])
    os.kill(job.pid if to == "launcher" else rank, signal.SIGTERM)
    output = job.communicate(timeout=60)[0]
    assert job.returncode == 0, output
    (saved,) = [path for path in (tmp_path / "ckpt").iterdir() if path.is_dir()]
    assert f"ended by SIGTERM after step {saved.name.removeprefix('global_step')}" in output


def test_a_run_that_does_not_end_in_time_is_ended(tmp_path):
    """Catches a grace period that only counts while the interpreter runs."""
    job = launch(
        tmp_path,
        ranks=1,
        steps=2,
        preemptible=True,
        grace_s=0.5,
        after_step='print("ready", flush=True); time.sleep(60)',
    )
    wait_for(job, "ready")
    begun = time.monotonic()
    job.send_signal(signal.SIGTERM)
    output = job.communicate(timeout=60)[0]
    assert time.monotonic() - begun < 20
    assert job.returncode == 128 + signal.SIGTERM and "not ended 0.5 s after SIGTERM" in output, output
