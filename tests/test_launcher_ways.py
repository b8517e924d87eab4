"""Ways to start a job other than from options on one host: mpirun, restarts, dry runs."""

import shutil
import subprocess

import pytest
from test_launcher import COMMAND, DEADLINE_S, environment, launch, script  # noqa: F401 (a fixture)


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="there is no mpirun")
@pytest.mark.parametrize("inside", [True, False])
def test_open_mpi(script, tmp_path, inside):
    """Catches ranks that Open MPI starts without their number, address or token, or with changed arguments."""
    path = script(
        """
        import os, sys
        names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "ZEROPAGE_JOB_TOKEN"]
        sys.stdout.write(" ".join([*(str(os.environ.get(n)) for n in names), str(sys.argv[1:])]) + chr(10))
        """
    )
    args = ["--allow-run-as-root", "--oversubscribe"]
    if inside:  # the user calls mpirun
        command = ["mpirun", *args, "-n", "2", COMMAND, "-q", path, "a b"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, env=environment())
    else:
        (tmp_path / "hosts").write_text("localhost slots=2\n")
        words = [
            "--hostfile",
            str(tmp_path / "hosts"),
            "--force_multi",
            "--launcher=openmpi",
            "--launcher_args",
            " ".join(args),
        ]
        done = launch("-q", *words, path, "a b")
    assert done.returncode == 0, done.stderr
    lines = sorted(line.split(" ", 6) for line in done.stdout.splitlines())
    assert [line[:4] for line in lines] == [["0", "0", "2", "2"], ["1", "1", "2", "2"]]
    assert lines[0][4] == lines[1][4] == ("127.0.0.1" if inside else "localhost")
    assert lines[0][5] == lines[1][5] and (lines[0][5] == "None") == inside, "one token for all, or none"
    assert [line[6] for line in lines] == [f"['--local_rank={rank}', 'a b']" for rank in range(2)]


def test_log_dir_dry_run_and_pid_file(script, tmp_path):
    """Catches a dry run that starts ranks, output that is missing in --log_dir, and a file of --save_pid that
    remains."""
    path = script("import os; print(os.environ['RANK'], os.listdir(os.environ['TMPDIR']))")
    env = environment(TMPDIR=str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    assert "[rank 1] MASTER_ADDR=127.0.0.1" in launch("--num_gpus=2", "--dry_run", path, env=env).stdout
    done = launch("--num_gpus=2", "--save_pid", "--log_dir", str(tmp_path / "logs"), path, env=env)
    assert done.returncode == 0 and ".zeropage']" in done.stdout
    assert [p.read_text().split()[0] for p in sorted((tmp_path / "logs").iterdir())] == ["0", "1"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_only_lost_ranks_are_started_again(script):
    """Catches a job that is not started again after a rank was killed, and one that is after its program has failed."""
    path = script(
        "import os, signal, sys\nif os.environ['ZEROPAGE_RESTART_COUNT'] == '0': os.kill(os.getpid(), 9)\nsys.exit(4)"
    )
    done = launch("--num_gpus=2", "--max_restarts=3", path)
    assert done.returncode == 4 and done.stderr.count("starting the job again") == 1
