"""What the launcher checks and chooses before a rank starts."""

import socket

from processes import output_of
from test_launcher import DEADLINE_S, launch, script, start  # noqa: F401 (a fixture)


def test_a_taken_port_is_replaced_and_reported(script):
    """Catches a job that fails because its port is taken, or changes the port silently."""
    path = script("import os; print(os.environ['MASTER_PORT'])")
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        done = launch("--num_gpus", "1", "--master_port", str(taken), path)
    assert done.returncode == 0
    assert int(done.stdout) != taken
    assert f"port {taken} is taken: using {int(done.stdout)}" in done.stderr


def test_launchers_started_together_take_different_ports(script, tmp_path):
    """Catches two jobs on one host that choose the same port."""
    may_end = tmp_path / "may_end"  # all jobs run at the same time, however slowly they start
    path = script(
        "import os, time; print(os.environ['MASTER_PORT'], flush=True)\n"
        f"while not os.path.exists({str(may_end)!r}): time.sleep(0.05)"
    )
    processes = [start("-q", path) for _ in range(10)]
    ports = [int(output_of(p).readline()) for p in processes]
    may_end.touch()
    for process in processes:
        process.communicate(timeout=DEADLINE_S)
    assert len(set(ports)) == 10


def test_errors_before_the_start(tmp_path):
    """Catches an error that is found only after ranks were started, and options that are ignored."""
    done = launch("--num_gpus", "2", str(tmp_path / "missing.py"))
    assert done.returncode == 64 and "does not exist" in done.stderr
    program = tmp_path / "no_interpreter"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    done = launch("--no_python", str(program))
    assert done.returncode == 74 and f"cannot start {program}" in done.stderr
    for words in (["--venv_script", "activate"], ["--node_rank", "1"]):  # has no effect here, which is an error
        done = launch(*words, __file__)
        assert done.returncode == 64 and words[0] in done.stderr
    assert launch("--version").stdout.startswith("zeropage ")


def test_config_prints_effective_values(tmp_path):
    """Catches a `zeropage config` that prints other values than a run would use, or accepts a misspelt key."""
    path = tmp_path / "ds_config.json"
    path.write_text('{"train_batch_size": 8, "zero_optimization": {"stage": 2}}')
    done = launch("config", str(path), "--world_size", "2")
    assert done.returncode == 0, done.stderr
    assert "stage" in done.stdout and "train_micro_batch_size_per_gpu" in done.stdout
    path.write_text('{"train_batch_size": 8, "zero_optimisation": {}}')
    done = launch("config", str(path))
    assert done.returncode == 64 and "zero_optimization" in done.stderr
