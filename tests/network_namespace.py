"""Ranks in a separate network namespace, where no other process uses the loopback interface and its bytes can be
counted."""

import fcntl
import pickle
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import TESTS, run_processes

TIMEOUT_S = 300


def loopback_bytes() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    raise AssertionError("there is no loopback interface")


def run_in_namespace(world: int, module: str, function: str, arguments: str, folder: Path) -> list[Any]:
    """As `run_processes`, in a new namespace. Skips the test where the system does not permit one."""
    probe = subprocess.run(["unshare", "-rn", "true"], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"a network namespace is needed to count bytes, and is not permitted here: {probe.stderr.strip()}")
    script = "import sys, network_namespace; network_namespace._run_here(*sys.argv[1:])"
    command = ["unshare", "-rn", sys.executable, "-c", script, str(world), module, function, arguments, str(folder)]
    run = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=TIMEOUT_S + 100)
    assert run.returncode == 0, run.stderr
    return pickle.loads((folder / "results").read_bytes())


def _run_here(world: str, module: str, function: str, arguments: str, folder: str) -> None:
    _bring_loopback_up()
    results = run_processes(int(world), module, function, arguments, Path(folder), timeout_s=TIMEOUT_S)
    Path(folder, "results").write_bytes(pickle.dumps(results))


def _bring_loopback_up() -> None:
    get_flags, set_flags, up = 0x8913, 0x8914, 0x1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        name, flags = struct.unpack("16sh", fcntl.ioctl(control, get_flags, struct.pack("16sh14x", b"lo", 0))[:18])
        fcntl.ioctl(control, set_flags, struct.pack("16sh14x", name, flags | up))
