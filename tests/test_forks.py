"""Forked children of a rank (workers of multiprocessing, os.fork): nothing that happens to them affects the job."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training import config_of

TESTS = str(Path(__file__).resolve().parent)

TRAINING = """
import json, multiprocessing, os, signal, sys, time
import torch
sys.path[:0] = [{tests!r}]
from training import part_of_batch, small_net, token_batch
import zeropage
torch.set_num_threads(1)

def idle(*_):
    time.sleep(0.01)
    return os.getpid()

{functions}

engine, *_ = zeropage.initialize(model=small_net(0), config=json.loads(sys.argv[1]))
for step in range({steps}):
    engine.backward(engine(*part_of_batch(token_batch(step), engine.world_size, engine.global_rank)))
    globals()[f"disturb{{step % {count}}}"]()
    engine.step()
print("ended at", engine.global_steps, flush=True)
"""
# Each runs between a backward and its step, on every rank.
DISTURBANCES = {
    "a pool that is terminated": """
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert len(pool.map(idle, range(4))) == 4
""",
    "a process that is terminated": """
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(20)
    assert child.exitcode == -signal.SIGTERM, child.exitcode
""",
    "a child that calls sys.exit": """
    child = os.fork()
    if child == 0:
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
""",
    "a child that uses the engine": """
    child = os.fork()
    if child == 0:
        try:
            engine.step()
        except zeropage.errors.UsageError as error:
            assert "fork" in str(error), error
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
""",
}


OWN = {"": {}, "with preemption_folder": {"preemption_folder": "ckpt"}, "over torch's groups": {"communicator": "c10d"}}


@pytest.mark.parametrize("own", OWN.values(), ids=OWN.keys())
def test_children_end_nothing(own, tmp_path):
    """Catches a child's end, or a signal to it, that ends the training; and a child that takes part in
    it."""
    script = tmp_path / "train.py"
    functions = "".join(f"def disturb{i}():{body}\n" for i, body in enumerate(DISTURBANCES.values()))
    script.write_text(
        TRAINING.format(tests=TESTS, steps=2 * len(DISTURBANCES), functions=functions, count=len(DISTURBANCES))
    )
    own = {"timeout_ms": 20_000, **own}
    command = [os.environ.get("ZEROPAGE_COMMAND", "zeropage"), "--num_gpus=2", "--no_local_rank", str(script)]
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    config = json.dumps(config_of(3, zeropage=own))
    done = subprocess.run(
        [*command, config], env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"ended at {2 * len(DISTURBANCES)}") == 2, done.stdout + done.stderr
    assert not (tmp_path / "ckpt").exists(), "nobody was asked to end"
