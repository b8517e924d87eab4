"""`zeropage doctor`: lists the resources and limits of this machine, with advice for each finding."""

import argparse
import ctypes
import errno
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from .. import __version__, alias
from ..report import format_bytes

_IO_URING_SETUP = 425  # the same number on every architecture
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"


@dataclass(frozen=True)
class Finding:
    """level: ok, note (something optional is missing), or warning (something will be slow or fail)."""

    name: str
    level: str
    text: str
    advice: str = ""


def examine() -> list[Finding]:
    """All findings. Cost: about a second; nothing is changed."""
    checks = (
        _versions,
        _devices,
        _nccl,
        _mpi,
        _cores,
        _memory,
        _shared_memory,
        _locked_memory,
        _huge_pages,
        _io_uring,
        _files,
        _packages,
        _alias,
    )
    return [_guarded(check) for check in checks]


def console() -> int:
    """The command `ds_report`, as DeepSpeed calls it."""
    return main(sys.argv[1:])


def main(arguments: list[str]) -> int:
    """The command; 0 also when there are warnings, which are advice."""
    parser = argparse.ArgumentParser(
        prog="zeropage doctor", description="Lists the resources and limits of this machine, with advice."
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    findings = examine()
    if parser.parse_args(arguments).json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return 0
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.level:<8} {finding.name:<{width}}  {finding.text}")
        if finding.advice:
            print(f"{'':<9}{'':<{width}}  -> {finding.advice}")
    return 0


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # after an unexpected error the other examinations must still run
        return Finding(
            check.__name__.strip("_").replace("_", " "),
            "warning",
            f"could not be examined: {type(error).__name__}: {error}",
        )


def _versions() -> Finding:
    return Finding(
        "versions",
        "ok",
        f"zeropage {__version__}, torch {torch.__version__}, Python {platform.python_version()}, Linux {platform.release()}",
    )


def _devices() -> Finding:
    if not torch.cuda.is_available():
        driver = os.path.exists("/dev/nvidiactl")
        advice = (
            "there is a driver, but torch finds no GPU: install a CUDA build of torch, and look at CUDA_VISIBLE_DEVICES"
            if driver
            else ""
        )
        return Finding("devices", "warning" if driver else "note", "no GPU: ranks run on the CPU", advice)
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    listed = ", ".join(f"{p.name} with {format_bytes(p.total_memory)}" for p in names)
    return Finding("devices", "ok", f"{len(names)} GPU(s): {listed}; CUDA {torch.version.cuda}")


def _nccl() -> Finding:
    if not torch.cuda.is_available():
        return Finding("NCCL", "ok", "not needed without a GPU")
    if not torch.distributed.is_nccl_available():
        return Finding(
            "NCCL",
            "warning",
            "this torch has none, so GPUs communicate through host memory",
            "install a CUDA build of torch",
        )
    return Finding("NCCL", "ok", ".".join(map(str, torch.cuda.nccl.version())))


def _mpi() -> Finding:
    if shutil.which("mpirun") is None:
        return Finding(
            "MPI", "note", "no mpirun in PATH", "only needed to start ranks with it: apt-get install openmpi-bin"
        )
    return Finding("MPI", "ok", f"mpirun is {shutil.which('mpirun')}")


def _cores() -> Finding:
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 0
    limited = usable < present
    advice = (
        "taskset, a container or the batch system limits this process; give it more where updates run on the host"
        if limited
        else ""
    )
    return Finding("cores", "note" if limited else "ok", f"{usable} of {present} usable", advice)


def _memory() -> Finding:
    with open("/proc/meminfo") as file:
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
    text = f"{format_bytes(fields['MemAvailable'])} available of {format_bytes(fields['MemTotal'])}, swap {format_bytes(fields['SwapTotal'])}"
    limit = _read("/sys/fs/cgroup/memory.max")
    if limit not in (None, "max"):
        text += f"; the control group allows {format_bytes(int(limit))}"
    return Finding("memory", "ok", text)


def _shared_memory() -> Finding:
    space = shutil.disk_usage("/dev/shm")
    text = f"/dev/shm has {format_bytes(space.free)} free of {format_bytes(space.total)}"
    if space.total < 1 << 30:
        return Finding(
            "shared memory",
            "warning",
            text,
            "CPU ranks keep shards and gradients there: docker run --shm-size=16g, or mount it larger",
        )
    return Finding("shared memory", "ok", text)


def _locked_memory() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Finding("locked memory", "ok", "no limit")
    text = f"at most {format_bytes(soft)} can be locked"
    if soft >= 1 << 30:
        return Finding("locked memory", "ok", text)
    where = (
        "ulimit -l unlimited"
        if hard == resource.RLIM_INFINITY
        else "in /etc/security/limits.conf `* - memlock unlimited`, or docker run --ulimit memlock=-1"
    )
    return Finding("locked memory", "note", text, f"registered buffers of io_uring and RDMA need more: {where}")


def _huge_pages() -> Finding:
    setting = _read(_HUGE_PAGES)
    if setting is None:
        return Finding(
            "huge pages", "note", "this kernel has no transparent huge pages", "large buffers will be a little slower"
        )
    chosen = setting[setting.index("[") + 1 : setting.index("]")]
    if chosen == "never":
        return Finding("huge pages", "note", "transparent huge pages are off", f"as root: echo madvise > {_HUGE_PAGES}")
    return Finding("huge pages", "ok", f"transparent huge pages: {chosen}")


def _io_uring() -> Finding:
    parameters = ctypes.create_string_buffer(120)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(_IO_URING_SETUP, 1, parameters)
    if descriptor >= 0:
        os.close(descriptor)
        return Finding("io_uring", "ok", "permitted")
    code = ctypes.get_errno()
    reasons = {
        errno.ENOSYS: (
            "this kernel has none",
            "offload to disk uses threads instead; Linux 5.10 or newer has it",
        ),
        errno.EPERM: (
            "forbidden here",
            "offload to disk uses threads instead; permit it by a seccomp profile with io_uring_setup, io_uring_enter and "
            "io_uring_register, or sysctl kernel.io_uring_disabled=0",
        ),
    }
    text, advice = reasons.get(code, (os.strerror(code), "offload to disk uses threads instead"))
    return Finding("io_uring", "note", text, advice)


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1024:
        return Finding("open files", "warning", f"at most {soft}", f"ulimit -n {hard if hard > soft else 65536}")
    return Finding("open files", "ok", f"at most {soft}")


def _packages() -> Finding:
    found, missing = [], []
    for name in ("tensorboard", "wandb", "transformers", "safetensors"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    text = ", ".join(found) or "none of the optional ones"
    advice = f"pip install what you want to use of: {', '.join(missing)}" if missing else ""
    return Finding("packages", "note" if missing else "ok", text, advice)


def _alias() -> Finding:
    strings = {
        "": "not installed; python -m zeropage alias install makes programs that import it use zeropage",
        "alias": f"{alias.VERSION}, which is zeropage's: programs that import it use zeropage",
        "deepspeed": "DeepSpeed itself is installed: programs that import it do not use zeropage",
    }
    return Finding("package deepspeed", "ok", strings[alias.active()])


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None
