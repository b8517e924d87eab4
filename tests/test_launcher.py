"""Drives the real `zeropage` command with small scripts that do not need torch."""

import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import textwrap
import time
from pathlib import Path

import pytest
from processes import output_of

ROOT = Path(__file__).resolve().parent.parent
COMMAND = os.environ.get("ZEROPAGE_COMMAND", str(ROOT / "build" / "dev" / "zeropage"))
DEADLINE_S = 30
# Children that a search for direct children or process groups does not find: a grandchild, and a daemon that left its
# parent and its session. All write their ids down.
FAMILY = """
    import os, sys, time
    note = lambda: open(f"{sys.argv[-1]}/{os.getpid()}", "w").close()
    note()
    if os.fork() == 0:
        note()
        time.sleep(600)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            note()
            os.closerange(0, 3)
            time.sleep(600)
        os._exit(0)
    os.wait()
"""


@pytest.fixture
def script(tmp_path):
    """Writes a script and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def environment(**extra: str) -> dict[str, str]:
    """The environment without variables that would change the launcher's decisions, and with this Python as the active
    one."""
    hidden = {"OMP_NUM_THREADS", "VIRTUAL_ENV", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"}
    kept = {k: v for k, v in os.environ.items() if k not in hidden}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return {**kept, "PATH": path, "CUDA_VISIBLE_DEVICES": "", **extra}


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def hear_signals() -> None:
    # Under nohup, or in the background of a script, signals are ignored; programs started from there inherit that.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(*words: str, **options) -> subprocess.Popen:
    options = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": environment(),
        "text": True,
        "preexec_fn": hear_signals,
        **options,
    }
    return subprocess.Popen([COMMAND, *words], **options)


def launch(*words: str, **options) -> subprocess.CompletedProcess:
    process = start(*words, **options)
    out, err = process.communicate(timeout=DEADLINE_S)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def wait_until(condition, seconds: float = DEADLINE_S) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def supervisor_of(process: subprocess.Popen) -> int:
    """The one child of the launcher."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or not is_alive(int(entry.name)):
            continue
        if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == process.pid:
            return int(entry.name)
    raise AssertionError("the launcher has no child")


def family(folder: Path, size: int) -> list[int]:
    """The processes of FAMILY once `size` of them are there."""
    assert wait_until(lambda: len(list(folder.iterdir())) == size), (
        f"only {len(list(folder.iterdir()))} processes started"
    )
    pids = [int(p.name) for p in folder.iterdir()]
    assert all(map(is_alive, pids))
    return pids


def assert_gone(pids: list[int], seconds: float) -> None:
    wait_until(lambda: not any(map(is_alive, pids)), seconds)
    assert [p for p in pids if is_alive(p)] == []


def test_environment_and_arguments_reach_the_script_unchanged(script):
    """Catches a rank without a variable that torchrun sets, and words that a shell would split, expand or take as the
    launcher's options."""
    path = script(
        """
        import json, os, sys
        names = "MASTER_ADDR MASTER_PORT WORLD_SIZE RANK LOCAL_RANK LOCAL_SIZE LOCAL_WORLD_SIZE CROSS_RANK CROSS_SIZE OMP_NUM_THREADS"
        env = {n: os.environ.get(n) for n in names.split()}
        print(json.dumps([env, len(os.environ["ZEROPAGE_JOB_TOKEN"]), sys.argv[1:]]))
        """
    )
    words = ["a b", 'quo"te', "it's", "two\nlines", "", "--num_gpus=9", "--", "--help", "$HOME", "*", "ünï"]
    port = free_port()
    done = launch("--num_gpus", "2", f"--master_port={port}", path, *words)
    assert done.returncode == 0, done.stderr
    assert "no GPU here: starting 2 CPU ranks" in done.stderr
    lines = sorted(done.stdout.splitlines())
    assert [line[:9] for line in lines] == ["[rank 0] ", "[rank 1] "]
    for rank, line in enumerate(lines):
        env, token_size, argv = json.loads(line[9:])
        assert argv == [f"--local_rank={rank}", *words]
        assert token_size == 32
        assert env == {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank),
            "LOCAL_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "CROSS_RANK": "0", "CROSS_SIZE": "1",
            "OMP_NUM_THREADS": str(max(len(os.sched_getaffinity(0)) // 2, 1)),
        }  # fmt: skip


def test_one_rank_is_started_unchanged(script):
    """Catches prefixes, added options or buffering in a job of one rank."""
    path = script("import sys; print('out', sys.argv[1:]); print('err', file=sys.stderr)")
    done = launch("--no_local_rank", "--master_port", free_port(), path, "x")
    assert (done.returncode, done.stdout) == (0, "out ['x']\n")
    assert done.stderr == "zeropage: no GPU here: starting 1 CPU rank; --num_gpus=2 starts two\nerr\n"


def test_module_and_program(tmp_path, script):
    """Catches `--module` and `--no_python` that start something else, or pass their words in another order."""
    (tmp_path / "a_module.py").write_text("import sys; print(__name__, sys.argv[1:])")
    done = launch("-q", "--module", "a_module", "x", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("__main__ ['--local_rank=0', 'x']\n", "")
    done = launch("-q", "--no_python", "echo", "x")
    assert (done.stdout, done.stderr) == ("--local_rank=0 x\n", "")


def test_the_virtual_environments_python_is_used(tmp_path, script):
    """Catches a launcher that takes the Python of PATH though a virtual environment is active."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\necho "this one" "$@"\n')
    python.chmod(0o755)
    path = script("")
    assert (
        launch("-q", path, env=environment(VIRTUAL_ENV=str(tmp_path))).stdout == f"this one -u {path} --local_rank=0\n"
    )


def test_cores_are_bound(script):
    """Catches ranks that run on cores which were not listed, and more ranks than cores bound without an error."""
    cores = sorted(os.sched_getaffinity(0))
    path = script(
        "import os; print(os.environ['RANK'], sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])"
    )
    assert launch("-q", "--bind_core_list", str(cores[0]), path).stdout == f"0 [{cores[0]}] 1\n"
    done = launch("--num_gpus", str(len(cores) + 1), "--bind_cores_to_rank", path)
    assert done.returncode == 64 and "start fewer ranks" in done.stderr


def test_lines_are_whole_and_none_is_lost(script):
    """Catches lines of ranks that are mixed, cut or dropped, and a last line without an end that is lost."""
    path = script(
        """
        import os, sys
        r = os.environ["RANK"]
        for i in range(3000):
            sys.stdout.write(f"out {r} {i} "); sys.stdout.write("x" * (i % 300) + "\\n")
            sys.stderr.write(f"err {r} {i}\\n")
        sys.stdout.write("y" * 200_000)
        """
    )
    done = launch("--num_gpus", "3", path)
    assert done.returncode == 0
    out, err = done.stdout.splitlines(), done.stderr.splitlines()
    for rank in range(3):
        ours = [line.removeprefix(f"[rank {rank}] ") for line in out if line.startswith(f"[rank {rank}] ")]
        assert ours[:3000] == [f"out {rank} {i} " + "x" * (i % 300) for i in range(3000)]
        assert "".join(ours[3000:]) == "y" * 200_000, "a line without an end is passed on in pieces"
        assert [line for line in err if line.startswith(f"[rank {rank}] ")] == [
            f"[rank {rank}] err {rank} {i}" for i in range(3000)
        ]


def test_an_endless_line_uses_little_memory(script):
    """Catches a launcher that keeps a line in memory until it ends."""
    path = script("import sys; [sys.stdout.write('x' * 1_000_000) for _ in range(60)]")
    process = start("--num_gpus", "2", path, stdout=subprocess.PIPE)
    total = peak_kb = 0
    while data := output_of(process).read(1 << 20):
        total += len(data)
        if not peak_kb and total > 60_000_000:
            peak_kb = int(Path(f"/proc/{supervisor_of(process)}/status").read_text().split("VmHWM:")[1].split()[0])
    assert process.wait(DEADLINE_S) == 0
    assert total > 120_000_000
    assert peak_kb < 30_000


def test_a_stopped_reader_does_not_delay_the_end(script):
    """Catches a launcher that cannot be ended while its output is not read."""
    process = start(
        "--num_gpus", "2", script("import sys\nwhile True: sys.stdout.write('x' * 1000 + '\\n')"), stderr=None
    )
    time.sleep(0.5)  # all pipes are full by now
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(5) == 143
    finally:
        output_of(process).close()


def test_a_closed_reader_ends_the_job(script):
    """Catches a job that continues after `zeropage ... | head` has ended."""
    process = start("--num_gpus", "2", script("import time\nwhile True: print('x', flush=True); time.sleep(0.01)"))
    output_of(process).readline()
    output_of(process).close()
    assert process.wait(DEADLINE_S) == 128 + signal.SIGPIPE
    assert process.stderr is not None and "the reader of the output has closed it" in process.stderr.read()


def test_the_first_failure_is_shown_last_and_whole(script):
    """Catches a traceback that is cut, mixed with those of other ranks, or not the last thing on the screen."""
    path = script(
        """
        import os, sys, time
        rank = int(os.environ["RANK"])
        if rank == 1:
            try:
                raise KeyError("the cause")
            except KeyError as error:
                raise SystemError("it broke\\nhere") from error
        print("before", file=sys.stderr)
        time.sleep(600)
        """
    )
    done = launch("--num_gpus", "3", path)
    assert done.returncode == 1
    shown, found, last = done.stderr.rpartition(
        "zeropage: rank 1 failed first, with exit code 1. The end of its stderr:\n"
    )
    assert found, done.stderr
    assert last.startswith("Traceback (most recent call last):\n"), "without prefixes, from the start"
    assert "KeyError: 'the cause'" in last and last.endswith("SystemError: it broke\nhere\n")
    assert "[rank 1] SystemError: it broke\n[rank 1] here\n" in shown


def test_the_cause_is_named_even_if_its_victim_ends_before_it(script, tmp_path):
    """Catches a launcher that blames the rank that ends first. A failed interpreter can take longer to end than its
    peers take to notice."""
    path = script(
        f"""
        import os, pathlib, sys, time
        said = pathlib.Path({str(tmp_path / "said")!r})
        if os.environ["RANK"] == "2":
            print("Traceback (most recent call last):\\nRuntimeError: the cause", file=sys.stderr, flush=True)
            said.touch()
            time.sleep(0.4)
            sys.exit(5)
        while not said.exists():
            time.sleep(0.01)
        time.sleep(0.1)
        raise ConnectionError("rank 2 is gone")
        """
    )
    done = launch("--num_gpus", "3", path)
    assert done.returncode == 5
    assert "rank 2 failed first, with exit code 5" in done.stderr
    assert done.stderr.endswith("Traceback (most recent call last):\nRuntimeError: the cause\n")


def test_import_error_on_one_rank(script, tmp_path):
    """Catches a job that waits for the other ranks after one could not import a module."""
    (tmp_path / "half_broken.py").write_text("import os\nif os.environ['RANK'] == '0': import no_such_module_here\n")
    done = launch("--num_gpus", "2", script("import half_broken, time; time.sleep(600)"))
    assert done.returncode == 1
    assert "rank 0 failed first" in done.stderr
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'no_such_module_here'\n")


@pytest.mark.parametrize("ranks", ["1", "2"])
@pytest.mark.parametrize(
    ("how", "code", "text"),
    [
        ("sys.exit(3)", 3, "exit code 3"),
        ("os.kill(os.getpid(), 9)", 75, "signal 9 (SIGKILL)"),
        ("os.abort()", 134, "signal 6 (SIGABRT)"),
    ],
)
def test_exit_codes(script, ranks, how, code, text):
    """Catches an exit code that hides how a rank failed, or a signal that is not named."""
    last = int(ranks) - 1
    done = launch(
        "--num_gpus", ranks, script(f"import os, sys, time\nif os.environ['RANK'] == '{last}': {how}\ntime.sleep(600)")
    )
    assert done.returncode == code
    assert f"rank {last} failed" in done.stderr and text in done.stderr


def test_ranks_that_ignore_sigterm_are_killed(script, tmp_path):
    """Catches a job that waits for a rank that ignores SIGTERM, and ranks that survive the job."""
    (folder := tmp_path / "pids").mkdir()
    path = script(
        """
        import os, signal, sys, time
        open(f"{sys.argv[-1]}/{os.getpid()}", "w").close()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(0.3)
        if os.environ["RANK"] == "1": sys.exit(7)
        time.sleep(600)
        """
    )
    done = launch("--num_gpus", "2", path, str(folder))
    assert done.returncode == 7
    assert_gone([int(p.name) for p in folder.iterdir()], 0)


def test_a_job_under_nohup_continues(script):
    """Catches `nohup zeropage ... &` that ends when its terminal is closed."""
    process = start(
        "--num_gpus",
        "1",
        script("import time\nprint('on', flush=True)\ntime.sleep(2)\n"),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    output_of(process).readline()
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_end_everything(script, tmp_path, number, code):
    """Catches processes of ranks that survive a signal to the launcher, and a wrong exit code."""
    (folder := tmp_path / "pids").mkdir()
    process = start("--num_gpus", "2", script(FAMILY + "    time.sleep(600)\n"), str(folder))
    pids = family(folder, 6)
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code
    assert_gone(pids, 0)
    if number == signal.SIGINT:
        assert err.count("[rank 0] KeyboardInterrupt") == err.count("[rank 1] KeyboardInterrupt") == 1


def test_a_second_signal_kills(script):
    """Catches a second signal that is ignored while ranks are being ended."""
    path = script(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('on', flush=True)\ntime.sleep(600)"
    )
    process = start("--num_gpus", "2", path)
    output_of(process).readline(), output_of(process).readline()
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 143
    assert time.monotonic() - started < 3


def test_ctrl_c_reaches_every_rank_once(script):
    """Catches a Ctrl-C that interrupts ranks twice: the terminal sends it to the whole foreground group, and the
    launcher must not repeat it."""
    path = script(
        """
        import os, signal, time
        count = 0
        def on_int(*_):
            global count
            count += 1
        signal.signal(signal.SIGINT, on_int)
        print("on", os.environ["RANK"], flush=True)
        end = time.monotonic() + 1
        while time.monotonic() < end: time.sleep(0.05)
        print("got", count, flush=True)
        """
    )
    leader, terminal = pty.openpty()

    def take_terminal():
        hear_signals()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = start("--num_gpus", "2", path, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
                    preexec_fn=take_terminal)  # fmt: skip
    os.close(terminal)
    text = read_until(leader, lambda text: "[rank 0] on 0\r\n" in text and "[rank 1] on 1\r\n" in text)
    os.write(leader, b"\x03")
    text = read_until(leader, lambda _: False)
    assert process.wait(DEADLINE_S) == 130
    assert "[rank 0] got 1\r\n" in text and "[rank 1] got 1\r\n" in text, text


def read_until(fd: int, enough) -> str:
    """The output of a pseudo-terminal, until `enough(text)` or its end."""
    data = b""
    while not enough(data.decode(errors="replace")):
        try:
            data += os.read(fd, 65536)
        except OSError:
            break
    return data.decode(errors="replace")


def test_rank_0s_progress_is_one_line_of_a_terminal(script):
    """Catches a progress bar of rank 0 that is printed as many lines, and one of another rank that overwrites it."""
    path = script(
        """
        import os, sys, time
        for i in range(5):
            sys.stderr.write(f"\\rstep {i}"); sys.stderr.flush()
            time.sleep(0.02)
        sys.stderr.write("\\n")
        if os.environ["RANK"] == "0": print(sys.stderr.isatty(), os.get_terminal_size(2).columns)
        """
    )
    leader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = start("--num_gpus", "2", path, stdout=terminal, stderr=terminal)
    os.close(terminal)
    text = read_until(leader, lambda _: False)
    assert process.wait(DEADLINE_S) == 0
    assert "\r\x1b[K[rank 0] step 1" in text, "states are drawn over each other"
    assert "[rank 1] step 4\r\n" in text and "[rank 1] step 2" not in text, "other ranks give lines only"
    assert "[rank 0] True 71" in text, "there is room for the prefix"


def test_nothing_survives_kill_9_of_the_launcher(script, tmp_path):
    """Catches processes of ranks that outlive a launcher that was killed."""
    (folder := tmp_path / "pids").mkdir()
    process = start("--num_gpus", "2", script(FAMILY + "    time.sleep(600)\n"), str(folder))
    pids = family(folder, 6)
    process.kill()
    assert_gone(pids, 2)
    process.communicate(timeout=DEADLINE_S)  # its pipes end only when the last of its processes has


def test_nothing_survives_kill_9_of_the_supervisor(script, tmp_path):
    """Catches processes of ranks that outlive the supervisor, and a launcher that does not notice its end."""
    (folder := tmp_path / "pids").mkdir()
    process = start("--num_gpus", "2", script(FAMILY + "    time.sleep(600)\n"), str(folder))
    pids = family(folder, 6)
    os.kill(supervisor_of(process), signal.SIGKILL)
    assert process.wait(DEADLINE_S) == 137
    assert_gone(pids, 0)


def test_what_a_finished_job_left_behind_is_ended(script, tmp_path):
    """Catches processes that a rank started and left running."""
    (folder := tmp_path / "pids").mkdir()
    done = launch("--num_gpus", "2", script(FAMILY), str(folder), stdout=None, stderr=None)
    assert done.returncode == 0
    pids = [int(p.name) for p in folder.iterdir()]
    assert len(pids) == 6
    assert_gone(pids, 0)
