"""The launcher on two and three hosts, which are network namespaces with an sshd in each."""

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import hosts as made_hosts
import pytest
from processes import output_of
from test_launcher import COMMAND, DEADLINE_S, ROOT, environment, launch, script, start, wait_until  # noqa: F401 (a fixture)

REASON = made_hosts.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
FEW_SECONDS = 5
SLEEP = """
    import os, sys, time
    if os.fork() == 0:
        os.setsid()
    os.write(1, f"on {os.environ['RANK']}{os.linesep}".encode())
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    made = made_hosts.Hosts(3, tmp_path_factory.mktemp("hosts"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def options(hosts, tmp_path):
    """Options that reach `count` hosts with these slots."""

    def make(*slots: int) -> list[str]:
        (tmp_path / "hostfile").write_text("".join(f"host{i} slots={n}\n" for i, n in enumerate(slots)))
        return ["--hostfile", str(tmp_path / "hostfile"), "--launcher_args", f"-F {hosts.ssh_config}"]

    return make


def assert_hosts_empty(hosts, started: float) -> None:
    wait_until(
        lambda: not any(hosts.processes(i) for i in range(3)), max(0.0, started + FEW_SECONDS - time.monotonic())
    )
    assert [hosts.processes(i) for i in range(3)] == [[], [], []]


def start_sleepers(hosts, options, script) -> subprocess.Popen:
    process = start(*options(1, 2), script(SLEEP))
    lines = {output_of(process).readline() for _ in range(6)}
    assert lines == {"[host0:0] on 0\n", "[host1:1] on 1\n", "[host1:2] on 2\n"}
    return process


def test_environment_and_arguments_reach_every_host(hosts, options, script, tmp_path):
    """Catches ranks of other hosts with another environment, folder or arguments than those of the first."""
    path = script(
        """
        import json, os, sys
        names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CROSS_RANK", "CROSS_SIZE", "MASTER_ADDR", "NCCL_X", "KEY"]
        print(json.dumps([[os.environ.get(n) for n in names], os.getcwd(), sys.argv[1:]]))
        print("err", file=sys.stderr)
        """
    )
    (tmp_path / ".deepspeed_env").write_text('# note\n\nKEY=a secret\'s "value"\n')
    words = ["a b", "it's", "two\nlines", "", "$HOME", "*", "ünï", "--", "-x", "\udcff"]
    done = launch(
        *options(1, 2, 1),
        "--log_dir",
        str(tmp_path / "logs"),
        path,
        *words,
        cwd=tmp_path,
        env=environment(NCCL_X="x y"),
    )
    assert done.returncode == 0, done.stderr
    expected = [("host0", 0, 0, 1, 0), ("host1", 1, 0, 2, 1), ("host1", 2, 1, 2, 1), ("host2", 3, 0, 1, 2)]
    lines = sorted(done.stdout.splitlines())
    for line, (host, rank, local_rank, local_size, node) in zip(lines, expected, strict=True):
        assert line.startswith(f"[{host}:{rank}] ")
        values, folder, arguments = json.loads(line.partition("] ")[2])
        assert values == [
            *map(str, (rank, local_rank, 4, local_size, node, 3)),
            hosts.addresses[0],
            "x y",
            'a secret\'s "value"',
        ]
        assert folder == str(tmp_path) and arguments == [f"--local_rank={local_rank}", *words]
    assert done.stderr.count("] err\n") == 4
    logs = sorted((tmp_path / "logs").iterdir())
    assert len(logs) == 4 and "err\n" in logs[3].read_text() and logs[0].stat().st_mode & 0o077 == 0


def test_a_failing_rank_ends_the_job_and_is_shown(hosts, options, script):
    """Catches a failure on another host that does not end the job, or is shown without its host."""
    path = script(
        """
        import os, time
        if os.environ["RANK"] == "2": raise KeyError("the cause")
        time.sleep(600)
        """
    )
    done = launch(*options(1, 2), path)
    assert done.returncode == 1
    assert "rank 2 on host1 failed first, with exit code 1." in done.stderr
    assert done.stderr.endswith("KeyError: 'the cause'\n")
    assert_hosts_empty(hosts, time.monotonic())


def test_a_killed_rank(hosts, options, script):
    """Catches processes that remain on any host after a rank was killed."""
    process = start_sleepers(hosts, options, script)
    rank = min(
        pid for pid in hosts.processes(0) if made_hosts.name_of(pid).startswith("python")
    )  # the other is its child
    started = time.monotonic()
    os.kill(rank, signal.SIGKILL)
    assert process.wait(DEADLINE_S) == 75
    assert_hosts_empty(hosts, started)


@pytest.mark.parametrize("how", ["session", "agent", "cable"])
def test_a_lost_host_ends_the_job_everywhere(hosts, options, script, how):
    """Catches a job that hangs, or processes that remain, when a host or its agent is lost."""
    process = start_sleepers(hosts, options, script)
    started = time.monotonic()
    try:
        if how == "cable":
            hosts.unplug(1)
        for pid in hosts.processes(1):
            if (
                how == "session"
                and pid in hosts.sessions(1)
                or how == "agent"
                and made_hosts.name_of(pid) == "zp-supervisor"
            ):
                os.kill(pid, signal.SIGKILL)
        out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 75, err
        assert "host host1 was lost" in err
        alive = [pid for pid in hosts.processes(1) if pid not in hosts.sessions(1)]
        wait_until(
            lambda: not any(made_hosts.name_of(pid) for pid in alive),
            max(0.0, started + FEW_SECONDS - time.monotonic()),
        )
        assert [made_hosts.name_of(pid) for pid in alive if made_hosts.name_of(pid)] == []
        assert time.monotonic() - started < FEW_SECONDS + 1
    finally:
        hosts.plug(1)
        for pid in hosts.sessions(1):  # they notice a pulled cable only after hours
            os.kill(pid, signal.SIGKILL)
    assert_hosts_empty(hosts, time.monotonic())


def test_kill_9_of_the_launcher(hosts, options, script):
    """Catches processes on other hosts that outlive the launcher."""
    process = start_sleepers(hosts, options, script)
    started = time.monotonic()
    process.kill()
    assert_hosts_empty(hosts, started)
    process.communicate(timeout=DEADLINE_S)


def test_sigterm_ends_everything(hosts, options, script):
    """Catches a signal that ends only the ranks of the first host."""
    process = start_sleepers(hosts, options, script)
    started = time.monotonic()
    process.terminate()
    assert process.wait(DEADLINE_S) == 143
    assert_hosts_empty(hosts, started)


def test_everything_wrong_is_listed_before_the_start(hosts, options, tmp_path):
    """Catches a check that stops at the first host with a problem."""
    (tmp_path / "hostfile").write_text("host0\nhost1\nno-such-host.invalid\n")
    done = launch("--hostfile", str(tmp_path / "hostfile"), "--launcher_args", f"-F {hosts.ssh_config}", "missing.py")
    assert done.returncode == 74
    assert "  host0: the script missing.py does not exist" in done.stderr
    assert "  host1: the script missing.py does not exist" in done.stderr
    assert "  no-such-host.invalid: ssh ended with exit code 255: " in done.stderr


@pytest.fixture
def environment_of_host1(hosts, tmp_path):
    """A script for --venv_script that puts a folder with substitute programs before PATH, only on host1; the folder,
    and the words to use it."""
    folder = tmp_path / "stand-ins"
    folder.mkdir()
    activate = tmp_path / "activate"
    activate.write_text(
        f"""
        PATH={Path(COMMAND).parent}:{Path(sys.executable).parent}:$PATH
        case "$SSH_CONNECTION" in *" {hosts.addresses[1]} "*) PATH={folder}:$PATH; export FROM_VENV=host1;; esac
        """
    )
    return folder, ["--venv_script", str(activate)]


OTHER_VERSION = """
import os, subprocess, sys
command, version, other = (word.encode() for word in sys.argv[1:])
agent = subprocess.Popen([command, "agent"], stdout=subprocess.PIPE)
while words := os.read(agent.stdout.fileno(), 65536):
    os.write(1, words.replace(version, other))
"""


def write_program(path: Path, text: str) -> None:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


def test_the_venv_scripts_environment_is_used(hosts, options, script, environment_of_host1):
    """Catches a script that is not sourced on every host, and ranks that run another python than the one it chose."""
    folder, words = environment_of_host1
    write_program(folder / "python3", f'export CHOSEN=stand-in; exec {sys.executable} "$@"')
    path = script("import os; print(os.environ.get('FROM_VENV'), os.environ.get('CHOSEN'))")
    done = launch(*options(1, 1), *words, path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["[host0:0] None None", "[host1:1] host1 stand-in"]


def test_other_versions_are_refused(hosts, options, script, environment_of_host1):
    """Catches a job whose hosts have different versions of torch or zeropage, and a check that stops at the first
    difference."""
    folder, words = environment_of_host1
    write_program(
        folder / "python3",
        f'case "$*" in *importlib.metadata*) echo 1.2.3;; *) exec {sys.executable} "$@";; esac',
    )
    version = launch("--version").stdout.split()[-1]
    other = "9" * len(version)
    write_program(folder / "zeropage", f"exec {sys.executable} {folder}/agent.py {COMMAND} {version} {other}")
    (folder / "agent.py").write_text(OTHER_VERSION)
    path = script("print('ran')")
    done = launch(*options(1, 1), *words, path)
    assert done.returncode == 64, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("  host1: ")]
    assert len(lines) == 2, done.stderr
    assert f"zeropage {other}, but host0 has {version}; install the same on all hosts" in lines[0]
    assert f"torch 1.2.3, but host0 has {torch_version()}; " in lines[1]
    done = launch(*options(1, 1), *words, "--no_ssh_check", path)
    assert done.returncode == 0 and done.stdout.count("ran") == 2, done.stderr


def torch_version() -> str:
    return importlib.metadata.version("torch")


def test_restarts_only_what_may_succeed(hosts, options, script):
    """Catches a restart after an error of the program, and none after a failure that may be temporary."""
    path = script(
        "import os, sys; print(os.environ['ZEROPAGE_RESTART_COUNT']); sys.exit(75 if os.environ['ZEROPAGE_RESTART_COUNT'] < '2' else 3)"
    )
    done = launch(*options(1, 1), "--num_nodes=1", "--force_multi", "--max_restarts", "5", path)
    assert done.returncode == 3
    assert done.stdout == "[host0:0] 0\n[host0:0] 1\n[host0:0] 2\n"


@pytest.mark.parametrize(("slots", "stage"), [((1, 1), 2), ((1, 1, 1), 3)])
def test_training_over_gloo(hosts, options, script, slots, stage):
    """Catches ranks on several hosts that do not find each other, or end with different parameters."""
    path = script(
        f"""
        import hashlib, sys, torch, zeropage
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
        config = {{"train_micro_batch_size_per_gpu": 4, "zero_optimization": {{"stage": {stage}}}, "optimizer": {{"type": "Adam", "params": {{"lr": 0.01}}}}}}
        engine, *_ = zeropage.initialize(model=model, config=config)
        torch.manual_seed(torch.distributed.get_rank())
        for _ in range(3):
            loss = engine(torch.randn(4, 16)).square().mean()
            engine.backward(loss)
            engine.step()
        with zeropage.zero.GatheredParameters(list(model.parameters())):
            words = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        print(torch.distributed.get_backend(), hashlib.sha256(words).hexdigest())
        """
    )
    env = environment(PYTHONPATH=str(ROOT / "python"))
    process = start(*options(*slots), path, env=env)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    messages = [line.partition("] ")[2] for line in out.splitlines() if "gloo" in line]
    assert len(messages) == len(slots) and len(set(messages)) == 1 and messages[0].startswith("gloo "), out


def train_gpt(folder: Path, start: list[str], communicator: str = "auto") -> list[float]:
    """The losses of two steps of the C++ example, started by the words before its own."""
    config = {"train_batch_size": 4, "zero_optimization": {"stage": 3}, "optimizer": {"type": "AdamW"}}
    (folder / "config.json").write_text(json.dumps({**config, "zeropage": {"communicator": communicator}}))
    program = [str(Path(COMMAND).parent / "examples/cpp/train_gpt"), f"--config={folder}/config.json", "--steps=2"]
    command = [*start, *program, f"--result={folder}/result.json"]
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    env = environment(OMP_NUM_THREADS="1", **allowed)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=2 * DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "result.json").read_text())["losses"]


@pytest.mark.parametrize("slots", [(1, 1), (2, 2)])
def test_a_compiled_program_trains_over_gloo(hosts, options, tmp_path, slots):
    """Catches C++ ranks of several hosts that do not find each other without MPI, or that compute other sums than on
    one host: all with all, and by hosts."""
    alone = train_gpt(tmp_path, [COMMAND, f"--num_gpus={sum(slots)}"])
    assert len(alone) == 2
    assert train_gpt(tmp_path, [COMMAND, *options(*slots)]) == alone


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here: make setup installs Open MPI")
def test_a_compiled_program_trains_through_mpi(hosts, tmp_path):
    """Catches ranks of several hosts that MPI has started and that do not communicate through it."""
    ssh = tmp_path / "ssh"
    write_program(ssh, f'exec /usr/bin/ssh -F {hosts.ssh_config} "$@"')
    network = hosts.addresses[0].rpartition(".")[0] + ".0/24"
    words = ["--mca", "plm_rsh_agent", str(ssh), "--mca", "btl", "tcp,self", "-x", "OMP_NUM_THREADS"]
    words += [word for layer in ("btl", "oob") for word in ("--mca", f"{layer}_tcp_if_include", network)]
    before = hosts.sent_bytes(1)
    losses = train_gpt(tmp_path, ["mpirun", "-n", "2", "--host", ",".join(hosts.addresses[:2]), *words], "mpi")
    assert hosts.sent_bytes(1) - before > 10e6  # of 2.7 million parameters: shards to gather and gradients
    assert losses == train_gpt(tmp_path, [COMMAND, "--num_gpus=2"])
