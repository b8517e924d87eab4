"""Ranks that mpirun starts instead of our launcher."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zeropage import distributed, errors

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
HYDRA = {"PMI_RANK": "3", "MPI_LOCALRANKID": "1", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
SCRIPT = """
import json, pathlib, sys, zeropage
from training import small_net, token_batch, part_of_batch

def losses(communicator):
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.01}},
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zeropage": {"communicator": communicator, "timeout_ms": 20000},
    }
    engine, *_ = zeropage.initialize(model=small_net(), config=config)
    world = zeropage.distributed.world_from_environment()
    found = []
    for step in range(3):
        loss = engine(*part_of_batch(token_batch(step), world.size, world.rank))
        engine.backward(loss)
        engine.step()
        found.append(loss.item())
    return [world.rank, world.size, found]

# Under mpirun's own process groups, too: their address is found without MASTER_ADDR.
results = [losses("auto"), losses("c10d")]
# A file for each rank: mpirun mixes what the ranks print, within a line.
pathlib.Path(sys.argv[1], f"rank{results[0][0]}.json").write_text(json.dumps(results))
"""


@pytest.mark.parametrize(
    ("variables", "world"),
    [
        (OPEN_MPI, (1, 1, 2, 2)),
        (HYDRA, (3, 1, 4, 2)),
        (SLURM, (3, 1, 4, 2)),
        ({**OPEN_MPI, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, (0, 0, 1, 1)),
    ],
    ids=["Open MPI", "MPICH", "srun", "the nearer launcher wins"],
)
def test_its_variables_replace_the_launchers(variables, world, monkeypatch):
    """Catches ranks that each train separately, or that mix up hosts, because their launcher uses other names of
    variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert distributed.world_from_environment() == distributed.World(*world)


def test_ranks_of_several_hosts_need_an_address(monkeypatch):
    """Catches a torch error of a hundred lines instead of one that names the missing variables."""
    for name, value in HYDRA.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(errors.ConfigError, match=r"neither MASTER_ADDR nor MASTER_PORT.* mpirun -x MASTER_ADDR"):
        distributed.init_process_group(torch.device("cpu"), distributed.World(3, 1, 4, 2), "gloo")


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here: make setup installs Open MPI")
def test_a_script_trains_under_mpirun(tmp_path: Path):
    """Catches ranks of `mpirun -n 2 python train.py` that do not find each other, over shared memory and over torch's
    groups."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    command = ["mpirun", "-n", "2", sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    results = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("rank*.json"))]
    assert [memory[:2] for memory, _ in results] == [[0, 2], [1, 2]]
    for memory, groups in results:
        assert memory == groups
