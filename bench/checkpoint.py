"""Measures saves to durable storage: with this engine, torch.save and torch.distributed.checkpoint, of the same bytes,
and plain writes; and how long a save in the background delays the training, compared with one copy of the state in
memory.

The methods alternate in every round, so a disk or a machine that is slow for a while slows all of them. Every save ends
with an fsync. There is one rank, so the disk is not shared. MB are 10^6 bytes.

    {"state_mb": ..., "save_mb_s": ..., "save_over_fio": ..., "torch_save_time": ..., "stall_over_copy": ...}

save_over_fio: compared with fio (direct, 8 requests of 1 MiB at once) if it is installed; save_over_write: compared
with calls of write() of 1 MiB each.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

import zeropage

BLOCK_BYTES = 1 << 20


def engine_of(numel: int, asynchronous: bool) -> Any:
    """An engine after one step of AdamW, with fp32 parameters in layers of a million elements each."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(1000, 1000, bias=False) for _ in range(max(1, numel // 1_000_000))))
    optimizer = {"type": "AdamW", "params": {"lr": 1e-4}}
    config = {"train_batch_size": 1, "optimizer": optimizer, "zeropage": {"async_save": asynchronous}}
    engine, *_ = zeropage.initialize(model=model, config=config)
    engine.backward(engine(torch.rand(1, 1000)).square().mean())
    engine.step()
    return engine


def state_like(numel: int) -> dict[str, torch.Tensor]:
    """Tensors of the sizes that the engine saves: parameters and two moments."""
    layers = range(max(1, numel // 1_000_000))
    return {
        f"{kind}/{layer}": torch.rand(1000, 1000) for kind in ("value", "exp_avg", "exp_avg_sq") for layer in layers
    }


def sync_tree(folder: Path) -> None:
    for path in [*(p for p in folder.rglob("*")), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def write_plainly(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Writes the same bytes in blocks like dd conv=fsync."""
    folder.mkdir()
    with open(folder / "file", "wb", buffering=0) as file:
        for tensor in state.values():
            view = memoryview(tensor.numpy()).cast("B")
            for begin in range(0, len(view), BLOCK_BYTES):
                file.write(view[begin : begin + BLOCK_BYTES])
        os.fsync(file.fileno())


def save_by_torch(folder: Path, state: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    with open(folder / "file", "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def save_by_dcp(folder: Path, state: dict[str, torch.Tensor]) -> None:
    with warnings.catch_warnings(action="ignore"):  # torch warns that there is only one process
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    sync_tree(folder)


def fio_seconds(file: Path, size: int) -> float:
    """The time that fio reports for a new file of `size` bytes, including its fsync."""
    command = [
        "fio",
        "--name=write",
        f"--filename={file}",
        "--rw=write",
        "--bs=1M",
        f"--size={size}",
        "--ioengine=libaio",
        "--iodepth=8",
    ]
    done = subprocess.run(
        [*command, "--direct=1", "--end_fsync=1", "--output-format=json"], capture_output=True, text=True, check=True
    )
    file.unlink()
    return json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["job_runtime"] / 1000


def seconds_of(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(numel: int, rounds: int, root: Path) -> dict[str, float]:
    torch.serialization.set_crc32_options(False)
    torch.set_num_threads(1)  # one copy uses one thread, as in the engine
    state = state_like(numel)
    copy = {name: torch.empty_like(tensor) for name, tensor in state.items()}
    plain, behind = engine_of(numel, False), engine_of(numel, True)
    behind.save_checkpoint(root / "warm")  # allocates its memory for the copy
    behind.wait_for_checkpoint()
    ways: dict[str, Callable[[Path], Any]] = {
        "write": lambda folder: write_plainly(folder, state),
        "save": plain.save_checkpoint,
        "torch_save": lambda folder: save_by_torch(folder, state),
        "dcp": lambda folder: save_by_dcp(folder, state),
        "copy": lambda folder: [copy[name].copy_(tensor) for name, tensor in state.items()],
        "stall": behind.save_checkpoint,
    }
    total_bytes = sum(tensor.nbytes for tensor in state.values())
    with_fio = shutil.which("fio") is not None
    times: dict[str, list[float]] = {name: [] for name in [*ways, *(["fio"] if with_fio else [])]}
    for number in range(rounds + 1):
        if with_fio:
            times["fio"].append(fio_seconds(root / "fio", total_bytes))
        for name, way in ways.items():
            folder = root / f"{name}{number}"
            times[name].append(seconds_of(partial(way, folder)))
            behind.wait_for_checkpoint()
            shutil.rmtree(folder, ignore_errors=True)
            os.sync()
    seconds = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first round warms up
    megabytes = total_bytes / 1e6
    beside_fio = {"save_over_fio": round(seconds["fio"] / seconds["save"], 2)} if with_fio else {}
    return {
        "state_mb": round(megabytes),
        "save_mb_s": round(megabytes / seconds["save"]),
        "write_mb_s": round(megabytes / seconds["write"]),
        **beside_fio,
        "save_over_write": round(seconds["write"] / seconds["save"], 2),
        "torch_save_time": round(seconds["torch_save"] / seconds["save"], 2),
        "dcp_time": round(seconds["dcp"] / seconds["save"], 2),
        "stall_ms": round(1000 * seconds["stall"], 1),
        "stall_over_copy": round(seconds["stall"] / seconds["copy"], 2),
        "stall_over_copy_best": round(min(times["stall"][1:]) / min(times["copy"][1:]), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=20_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="a folder on the disk to measure; default: the system's temporary folder"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zp-bench-", dir=options.folder) as root:
        result = {
            "bench": "checkpoint",
            "parameters": options.parameters,
            **measure(options.parameters, options.rounds, Path(root)),
        }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
