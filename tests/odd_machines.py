"""Trains on machines that lack something, one after the other, and prints the result of each
(tests/test_odd_machines.py).

This process imports torch and the package once. For each machine, a fork changes the machine for itself and its
children only, and forks two ranks.

    python odd_machines.py FOLDER MACHINE...
"""

import ctypes
import errno
import json
import os
import signal
import struct
import sys
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from processes import free_port
from training import config_of, part_of_batch, small_net, token_batch

import zeropage

STEPS = 3
WORLD = 2
TIMEOUT_MS = 20_000
END_S = 120.0
CLONE_NEWNS, MS_REC_PRIVATE, MNT_DETACH = 0x20000, 0x4000 | 0x40000, 2
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PR_SET_THP_DISABLE, PR_GET_THP_DISABLE = 38, 22, 41, 42
IO_URING_SETUP = 425

libc = ctypes.CDLL(None, use_errno=True)


class NotPermittedError(Exception):
    """The system does not permit this process to set up such a machine."""


def call(function: str, *arguments: object) -> int:
    """Calls a function of the C library. Raises NotPermittedError when it fails."""
    result = getattr(libc, function)(*arguments)
    if result < 0:
        raise NotPermittedError(f"{function}: {os.strerror(ctypes.get_errno())}")
    return result


def mount(target: str, options: str) -> None:
    call("mount", b"tmpfs", target.encode(), b"tmpfs", 0, options.encode())


def own_mounts() -> None:
    call("unshare", CLONE_NEWNS)
    call("mount", None, b"/", None, MS_REC_PRIVATE, None)


def small_shared_memory(folder: Path) -> None:
    own_mounts()
    mount("/dev/shm", "size=64k")
    assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 65536


def no_huge_pages(folder: Path) -> None:
    call("prctl", PR_SET_THP_DISABLE, 1, 0, 0, 0)
    assert libc.prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1


def no_io_uring(folder: Path) -> None:
    """By the filter that container engines use: the system calls fail with EPERM."""
    load, jump_if_less, jump_if_more, answer = 0x20, 0x35, 0x25, 0x06  # of BPF: LD|W|ABS, JMP|JGE, JMP|JGT, RET
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    program = [(load, 0, 0, 0), (jump_if_less, 0, 2, IO_URING_SETUP), (jump_if_more, 1, 0, IO_URING_SETUP + 2)]
    program += [(answer, 0, 0, refuse), (answer, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", PR_SET_SECCOMP, 2, header, 0, 0)
    assert libc.syscall(IO_URING_SETUP, 1, None) == -1 and ctypes.get_errno() == errno.EPERM


def no_io_uring_by_sysctl(folder: Path) -> None:
    """The system calls fail with EPERM, too. The setting applies to the whole machine, so a test only reads it."""
    setting = Path("/proc/sys/kernel/io_uring_disabled")
    if not setting.exists():
        raise NotPermittedError("this kernel has no kernel.io_uring_disabled")
    value = setting.read_text().strip()
    allowed = libc.syscall(IO_URING_SETUP, 1, None) != -1 or ctypes.get_errno() != errno.EPERM
    if value == "0" or allowed:
        raise NotPermittedError(
            f"kernel.io_uring_disabled is {value}, for the whole machine; it is tried where it is 2"
        )


def jumping_clock(folder: Path) -> None:
    """A preloaded library changes the clock of the day: it jumps by an hour, forwards and back, from one call to the
    next."""
    try:
        switch = ctypes.c_int.in_dll(libc, "zeropage_clock_jumps")
    except ValueError as error:
        raise NotPermittedError(str(error)) from None
    switch.value = 1
    looks = [time.time() for _ in range(4)]
    assert max(looks) - min(looks) > 3000, looks


def little_memory(folder: Path) -> None:
    """A control group with a low limit on memory, which rank 1 joins by `join_little_memory`."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            group, limit = Path("/sys/fs/cgroup/memory" + path), "memory.limit_in_bytes"
        elif controllers == "" and Path(f"/sys/fs/cgroup{path}/memory.max").exists():
            group, limit = Path("/sys/fs/cgroup" + path), "memory.max"
        else:
            continue
        mine = group / f"zeropage-test-{os.getpid()}"
        try:
            mine.mkdir()
            (mine / limit).write_text(str(32 << 20))
        except OSError as error:
            if mine.exists():
                mine.rmdir()
            raise NotPermittedError(str(error)) from None
        (folder / "group").write_text(str(mine))
        return
    raise NotPermittedError("no control group that limits memory")


def join_little_memory(folder: Path) -> None:
    (Path((folder / "group").read_text()) / "cgroup.procs").write_text(str(os.getpid()))
    hoard = []
    while True:
        hoard.append(bytearray(os.urandom(1 << 20)))


def leave_little_memory(folder: Path) -> None:
    if (folder / "group").exists():
        Path((folder / "group").read_text()).rmdir()


def mounted_checkpoints(folder: Path) -> None:
    own_mounts()
    (folder / "disk").mkdir()
    mount(str(folder / "disk"), "size=16m")


def lose_the_mount(folder: Path) -> None:
    call("umount2", str(folder / "disk").encode(), MNT_DETACH)


MACHINES = {
    "64 KiB of /dev/shm": small_shared_memory,
    "no huge pages": no_huge_pages,
    "no io_uring": no_io_uring,
    "no io_uring by sysctl": no_io_uring_by_sysctl,
    "a clock that jumps": jumping_clock,
    "little memory": little_memory,
    "a mount that disappears": mounted_checkpoints,
}


def train(machine: str, folder: Path, rank: int) -> list[float]:
    """The losses of this rank."""
    drive = {"device": "nvme", "nvme_path": str(folder)}
    zero = {"offload_optimizer": drive} if machine.startswith(("no io_uring", "no huge pages")) else {}
    config = config_of(3, zero_optimization=zero, zeropage={"timeout_ms": TIMEOUT_MS})
    engine, *_ = zeropage.initialize(model=small_net(0), config=config)
    losses = []
    for step in range(STEPS):
        loss = engine(*part_of_batch(token_batch(step), WORLD, rank))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
        if machine == "little memory" and rank == 1:
            join_little_memory(folder)
        if machine == "a mount that disappears":
            engine.save_checkpoint(folder / "disk" / "ckpt")
            if rank == 0 and step == 0:
                lose_the_mount(folder)
    return losses


def fork(work: Callable[[], object]) -> int:
    """A child that does `work()` and ends."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    finally:
        os._exit(0)


def run_rank(machine: str, folder: Path, rank: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        outcome: dict[str, Any] = {"losses": train(machine, folder, rank)}
    except Exception as error:
        outcome = {"error": f"{type(error).__name__}: {error}"}
    (folder / f"rank{rank}").write_text(json.dumps(outcome))


def run_machine(machine: str, folder: Path) -> None:
    try:
        MACHINES[machine](folder)
    except NotPermittedError as error:
        (folder / "refused").write_text(str(error))
        return
    os.environ |= {"WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ZEROPAGE_JOB_TOKEN": uuid.uuid4().hex}
    ranks = [fork(partial(run_rank, machine, folder, rank)) for rank in range(WORLD)]
    end = time.monotonic() + END_S
    statuses: dict[int, int] = {}
    while len(statuses) < WORLD:
        for pid in ranks:
            if pid not in statuses and (done := os.waitpid(pid, os.WNOHANG))[0]:
                statuses[pid] = done[1]
            elif pid not in statuses and time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    leave_little_memory(folder)
    (folder / "statuses").write_text(json.dumps([statuses[pid] for pid in ranks]))


def outcome_of(machine: str, folder: Path) -> dict:
    """{"refused": why} or {"ranks": [per rank {"losses"} or {"error"} or {}], "statuses": of wait, "left": names in
    "disk"}."""
    folder.mkdir()
    os.waitpid(fork(lambda: run_machine(machine, folder)), 0)
    if (folder / "refused").exists():
        return {"refused": (folder / "refused").read_text()}
    ranks = [
        json.loads(path.read_text()) if path.exists() else {} for path in (folder / f"rank{r}" for r in range(WORLD))
    ]
    left = sorted(path.name for path in (folder / "disk").glob("ckpt/*"))
    return {"ranks": ranks, "statuses": json.loads((folder / "statuses").read_text()), "left": left}


def main(folder: Path, machines: list[str]) -> None:
    torch.set_num_threads(1)
    print(json.dumps({machine: outcome_of(machine, folder / str(i)) for i, machine in enumerate(machines)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
