"""Ranks that a real Slurm starts: `srun python train.py` and `srun zeropage train.py`, on one node and on two."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import slurm
from processes import free_port
from test_launcher import COMMAND

TRAIN = """
import json, os, signal, sys
sys.path[:0] = [{tests!r}]
import torch
from training import config_of, part_of_batch, small_net, token_batch
import zeropage
torch.set_num_threads(1)
engine, *_ = zeropage.initialize(model=small_net(0), config=config_of(2))
losses = []
for step in range(3):
    loss = engine(*part_of_batch(token_batch(step), engine.world_size, engine.global_rank))
    engine.backward(loss)
    if "kill" in sys.argv and engine.global_rank == 1 and step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    engine.step()
    losses.append(loss.item())
print("got", json.dumps([engine.global_rank, engine.world_size, losses]), flush=True)
"""

WAIT = """
import os, sys, time
rank, size = (os.environ.get(name) or os.environ[of_srun] for name, of_srun in (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS")))
print("pid", os.getpid(), rank, size, flush=True)
while sys.argv[1:] == ["wait"]:
    time.sleep(0.1)
"""

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
pytestmark = pytest.mark.skipif(slurm.why_not() is not None, reason=slurm.why_not() or "")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "train.py").write_text(TRAIN.format(tests=str(Path(__file__).resolve().parent)))
    (folder / "wait.py").write_text(WAIT)
    made = slurm.Slurm(folder)
    yield made
    made.close()


def results(output: str) -> list:
    return sorted(json.loads(line.removeprefix("got ")) for line in output.splitlines() if line.startswith("got "))


@pytest.fixture(scope="module")
def trained(cluster):
    """The results of two ranks of one node."""
    done = cluster.run("-N1", "-n2", sys.executable, "train.py")
    assert done.returncode == 0, done.stderr
    return results(done.stdout)


def test_srun_python_is_one_job(trained):
    """Catches N ranks that each train a separate copy, because Slurm's variables were not read."""
    assert [(rank, size) for rank, size, _ in trained] == [(0, 2), (1, 2)]
    assert trained[0][2] != trained[1][2], "each has its part of the batch"


def test_two_nodes(cluster, trained):
    """Catches ranks of two nodes that wait for each other without an address, and other numbers than on one node."""
    done = cluster.run("-N2", "-n2", sys.executable, "train.py")
    assert done.returncode != 0 and "neither MASTER_ADDR nor MASTER_PORT" in done.stderr, done.stderr
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    done = cluster.run("-N2", "-n2", sys.executable, "train.py", **address)
    assert done.returncode == 0, done.stderr
    assert results(done.stdout) == trained


def test_srun_zeropage(cluster, trained):
    """Catches node names that cannot be resolved, which cost minutes of retries on every rank; and the
    launcher under srun."""
    words = ["-N2", "-n2", COMMAND, "-q", "--no_local_rank"]
    done = cluster.run(*words, "train.py", VIRTUAL_ENV=sys.prefix)
    assert (
        done.returncode != 0 and "host n1 does not resolve" in done.stderr and "the first host of srun" in done.stderr
    ), done.stderr
    assert "--master_addr" in done.stderr and "Traceback" not in done.stderr
    address = f"--master_addr=127.0.0.1 --master_port={free_port()}".split()
    done = cluster.run(*words, *address, "train.py", VIRTUAL_ENV=sys.prefix, GLOO_SOCKET_IFNAME="lo")
    assert done.returncode == 0, done.stderr
    assert results(done.stdout) == trained


def test_a_killed_rank_ends_the_job(cluster):
    """Catches a rank that waits for one that has ended."""
    done = cluster.run("-N1", "-n2", sys.executable, "train.py", "kill", timeout_s=60)
    assert done.returncode != 0 and "PeerError" in done.stderr and "rank 1" in done.stderr, done.stderr


def test_the_batch_script_of_the_examples(cluster):
    """Catches a script for sbatch that starts no job, or ranks that train separately: two tasks, as in the command."""
    environment = {"PYTHON": sys.executable, "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    words = [
        "--wait",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--output=batch.out",
        str(EXAMPLES / "slurm.sh"),
        str(EXAMPLES / "train_gpt.py"),
    ]
    done = subprocess.run(
        ["sbatch", *words, "--steps=2", "--result=batch.json"],
        env={**cluster.environment, **environment},
        cwd=cluster.folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    messages = cluster.folder / "batch.out"
    assert done.returncode == 0, done.stderr + (messages.read_text() if messages.exists() else "")
    result = json.loads((cluster.folder / "batch.json").read_text())
    assert len(result["bytes"]) == 2 and len(result["losses"]) == 2


def pids(output: str) -> dict[tuple[str, str], int]:
    """Process ids by rank and world size, of wait.py."""
    lines = [line.split()[-4:] for line in output.splitlines() if " ".join(line.split()[-4:]).startswith("pid ")]
    return {(rank, size): int(pid) for _, pid, rank, size in lines}


def test_salloc_zeropage(cluster):
    """Catches a launcher in an allocation that starts its ranks on other nodes than Slurm has allocated, or as one
    rank."""
    done = cluster.run(
        "-N1", "-n2", COMMAND, "-q", "--no_local_rank", "wait.py", program="salloc", VIRTUAL_ENV=sys.prefix
    )
    assert done.returncode == 0, done.stderr
    assert set(pids(done.stdout)) == {("0", "2"), ("1", "2")}, done.stdout + done.stderr


@pytest.mark.parametrize("launcher", [False, True], ids=["python", "zeropage"])
def test_scancel_leaves_no_process(cluster, launcher):
    """Catches ranks that continue, and keep their nodes, when Slurm has cancelled their job."""
    words = [COMMAND, "-q", "--no_local_rank"] if launcher else [sys.executable]
    name = f"cancelled-{launcher}"
    command = ["srun", "-N1", "-n2", "-J", name, *words, "wait.py", "wait"]
    environment = {**cluster.environment, "VIRTUAL_ENV": sys.prefix}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with open(cluster.folder / "messages", "w+") as messages:
        job = subprocess.Popen(command, env=environment, cwd=cluster.folder, stdout=messages, stderr=subprocess.STDOUT)
        try:
            text = Path(messages.name)
            cluster.await_(lambda: len(pids(text.read_text())) == 2 or job.poll() is not None, "two ranks")
            ranks = pids(text.read_text()).values()
            assert len(ranks) == 2, text.read_text()
            cancelled = cluster.run("-n", name, program="scancel")
            assert cancelled.returncode == 0, cancelled.stderr
            assert job.wait(60) != 0, "a job that was cancelled has not succeeded"
            cluster.await_(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks), "the end of all ranks")
        finally:
            job.kill()
            job.wait()
