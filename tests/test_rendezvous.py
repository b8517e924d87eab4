"""The rendezvous of ranks (MASTER_ADDR, MASTER_PORT): who can reach it, which processes a rank trusts, and the error
when no process answers."""

import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from processes import free_port, run_processes
from test_launcher import launch, script  # noqa: F401  (a fixture)

from zeropage import distributed, errors

JOIN = """
import os, sys, torch
from datetime import timedelta
from zeropage import distributed
world = distributed.World(*map(int, sys.argv[1:5]))
distributed.init_process_group(torch.device("cpu"), world, "gloo", timedelta(seconds=float(sys.argv[5])))
total = torch.ones(1)
torch.distributed.all_reduce(total)
print("sum", int(total), *sys.argv[6:], flush=True)
sys.path.insert(0, os.environ["TESTS"])
import test_rendezvous
print("listens", *test_rendezvous.listening_addresses(), flush=True)
torch.distributed.barrier()
"""


def listening_addresses() -> list[str]:
    """The addresses of this process's TCP sockets that wait for connections."""
    mine = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            mine.add(os.readlink(link))
        except FileNotFoundError:
            continue  # the folder's own descriptor
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in mine:
                number = bytes.fromhex(fields[1].split(":")[0])
                words = b"".join(number[i : i + 4][::-1] for i in range(0, len(number), 4))
                found.add(socket.inet_ntop(socket.AF_INET if len(words) == 4 else socket.AF_INET6, words))
    return sorted(found)


def start(rank: int, local_size: int, port: int, timeout_s: float = 20, **variables: str) -> subprocess.Popen:
    """A rank of two."""
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TESTS": str(Path(__file__).parent),
        **variables,
    }
    local_rank = rank if local_size == 2 else 0
    command = [sys.executable, "-c", JOIN, str(rank), str(local_rank), "2", str(local_size), str(timeout_s)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outputs(*ranks: subprocess.Popen) -> list[tuple[int, str, str]]:
    try:
        messages = [rank.communicate(timeout=60) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, *strings) for rank, strings in zip(ranks, messages, strict=True)]


def engine_listens(port: int) -> list[str]:
    """Trains a step over torch's groups; where this rank listens then."""
    from training import config_of, part_of_batch, small_net, token_batch

    import zeropage

    engine, *_ = zeropage.initialize(model=small_net(0), config=config_of(2, zeropage={"communicator": "c10d"}))
    engine.backward(engine(*part_of_batch(token_batch(0), engine.world_size, engine.global_rank)))
    engine.step()
    return listening_addresses()


def test_ranks_of_one_host_cannot_be_reached_from_others(tmp_path):
    """Catches a store (and gloo's own sockets) of a job on one host that anyone who reaches this host can read and
    write."""
    for addresses in run_processes(2, "test_rendezvous", "engine_listens", '{"port": 0}', tmp_path):
        assert addresses and set(addresses) == {"127.0.0.1"}, addresses


def test_on_several_hosts_only_the_first_hosts_address_is_used():
    """Catches a store that listens on every network of rank 0's host, where one address was named."""
    port = free_port()
    done = outputs(*(start(rank, 1, port, MASTER_ADDR="127.0.0.2", GLOO_SOCKET_IFNAME="lo") for rank in range(2)))
    assert [code for code, *_ in done] == [0, 0], done
    assert "127.0.0.2" in done[0][1].split("listens")[1].split(), done[0]
    assert not {"0.0.0.0", "::"} & set(done[0][1].split("listens")[1].split()), done[0]


def test_a_rank_of_another_job_is_refused():
    """Catches a rank that trains with any process that answers at the address, because two jobs were given the same
    port."""
    port = free_port()
    done = outputs(
        *(start(rank, 1, port, 4, ZEROPAGE_JOB_TOKEN=str(rank) * 32, GLOO_SOCKET_IFNAME="lo") for rank in range(2))
    )
    assert "PeerError" in done[1][2] and "does not know the job's token" in done[1][2], done
    assert all("sum" not in out for _, out, _ in done)


def test_a_program_that_does_not_know_the_token_is_refused():
    """Catches a rank that takes its peers' addresses from a store that is not its job's."""
    import torch.distributed as dist

    impostor = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ((code, out, err),) = outputs(start(1, 1, impostor.port, 2, ZEROPAGE_JOB_TOKEN="a" * 32))
    assert code != 0 and "TimeoutError" in err and "rank 0 did not prove that it knows the token" in err, err
    assert "C++" not in err and len(err.splitlines()) < 20, err


@pytest.mark.parametrize("address", ["127.0.0.1", "10.255.255.1"])
def test_nobody_answers(address, monkeypatch):
    """Catches minutes of retries, and a traceback of a hundred lines where one line can name the missing rank and the
    variables to set."""
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    begin = time.monotonic()
    with pytest.raises(errors.TimeoutError) as caught:
        distributed.init_process_group(torch.device("cpu"), distributed.World(1, 0, 2, 1), "gloo", timedelta(seconds=1))
    assert time.monotonic() - begin < 3
    text = str(caught.value)
    assert f"rank 1 of 2 could not join the others at {address}:" in text and "--master_addr" in text, text
    assert "\n" not in text


def test_a_name_that_does_not_resolve(monkeypatch):
    """Catches the same for a node name of Slurm that cannot be resolved."""
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    monkeypatch.setenv("MASTER_PORT", "29500")
    for rank in (0, 1):
        with pytest.raises(
            (errors.ConfigError, errors.TimeoutError), match=r"no-such-host\.invalid.*set --master_addr"
        ) as caught:
            distributed.init_process_group(
                torch.device("cpu"), distributed.World(rank, 0, 2, 1), "gloo", timedelta(seconds=2)
            )
        assert "\n" not in str(caught.value)


def test_the_launcher_reports_it_before_ranks_start(script, tmp_path):  # noqa: F811
    """Catches a job whose ranks all start, and all fail, because the first host's name is unknown."""
    (tmp_path / "hosts").write_text("n1 slots=1\nn2 slots=1\n")
    path = script("print('started')")
    words = ["--hostfile", str(tmp_path / "hosts"), "--no_ssh", "--node_rank=1", "--master_addr=no-such-host.invalid"]
    done = launch(*words, path)
    assert (done.returncode, done.stdout) == (64, ""), done
    assert "no-such-host.invalid does not resolve" in done.stderr and "--master_addr" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MASTER_PORT", "port"),
        ("MASTER_PORT", "0"),
        ("MASTER_PORT", "65536"),
        ("MASTER_ADDR", "a b"),
        ("ZEROPAGE_JOB_TOKEN", "x"),
    ],
)
def test_variables_that_are_not_what_they_should_be(name, value, monkeypatch):
    """Catches a bare error of Python or torch, or a rank that waits at an unintended address."""
    for variable, good in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500"), ("ZEROPAGE_JOB_TOKEN", "a" * 32)):
        monkeypatch.setenv(variable, good)
    monkeypatch.setenv(name, value)
    with pytest.raises(errors.ConfigError, match=f"{name}=.{value}.*expected"):
        distributed.init_process_group(torch.device("cpu"), distributed.World(1, 0, 2, 1), "gloo", timedelta(seconds=1))


def test_environment_of_the_launcher(monkeypatch):
    """Catches ranks that run separately because a variable was missing."""

    def world_of(variables: dict[str, str]) -> distributed.World:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            return distributed.world_from_environment()

    whole = {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "h",
        "MASTER_PORT": "1",
    }
    assert world_of({}) == distributed.World()
    assert world_of(whole) == distributed.World(1, 1, 2, 2)
    for name in whole:
        if name not in ("RANK", "WORLD_SIZE"):
            with pytest.raises(errors.ConfigError, match=name):
                world_of({key: value for key, value in whole.items() if key != name})
    with pytest.raises(errors.ConfigError, match="contradict"):
        world_of({**whole, "RANK": "2"})
    with pytest.raises(errors.ConfigError, match="expected integers"):
        world_of({**whole, "RANK": "\u0661"})  # a digit to Python's int(), and to no launcher
