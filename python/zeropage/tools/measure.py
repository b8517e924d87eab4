"""Measures what a job can reach on this machine. `zeropage plan --measure` starts this module as the ranks of the
planned job.

1. All ranks do the same at the same time, so that they share cores, memory and links as in training.
2. Computation: one transformer layer of the model's width, forward and backward, or the largest smaller one that takes
   a fraction of a second.
3. Memory, links between ranks, the link to the host, and the disk (rank 0), each for about a second.
4. Overlap: the layer and a gather at the same time, compared with one after the other.
5. Rank 0 writes the figures of the slowest rank, with the names of the options of `zeropage plan`.
"""

import argparse
import json
import os
import platform
import struct
import sys
import threading
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from .. import _C, distributed
from ..initialize import parse_config

LAYER_SECONDS = 0.5  # upper limit for a layer's forward and backward
PAGE_BYTES = 16 << 20
STREAM_BYTES = 64 << 20  # size of each of three arrays: larger than the caches
LEAST_RATE = 1.0  # if there is nothing to measure: a single rank has no link
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Layer(nn.Module):
    """x [B, T, C] -> [B, T, C]: the layer that the plan counts, 12 C^2 parameters."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = max(1, width // 64)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norms[0](x)).view(batch, length, 3, self.heads, width // self.heads)
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.contract(F.gelu(self.expand(self.norms[1](x))))


class Measurement:
    """The ranks, their device, and the time for each measurement."""

    def __init__(self, dtype: torch.dtype, seconds: float = 0.8):
        self.dtype = dtype
        self.seconds = seconds
        self.world = distributed.current_world()
        self.device = distributed.choose_device(None, self.world)
        config = parse_config({"train_micro_batch_size_per_gpu": 1}, self.world.size)
        self.communicator = distributed.make_communicators(config, self.device, self.world).parameters

    def say(self, text: str) -> None:
        if self.world.rank == 0:
            print(f"measuring: {text}", file=sys.stderr, flush=True)

    def settle(self) -> None:
        """Waits for the device, and for the other ranks."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.communicator.barrier()

    def seconds_of(self, work: Callable[[], object]) -> float:
        """Seconds of one call, in the fastest of three blocks, on the slowest rank. All ranks make the same number of
        calls."""
        work()
        self.settle()
        start = time.perf_counter()
        work()
        self.settle()
        calls = max(1, int(self.seconds / 3 / self.worst(time.perf_counter() - start)))
        best = float("inf")
        for _ in range(3):
            self.settle()
            start = time.perf_counter()
            for _ in range(calls):
                work()
            self.settle()
            best = min(best, (time.perf_counter() - start) / calls)
        return self.worst(best)

    def worst(self, value: float) -> float:
        packing = struct.Struct("<d")
        all_values = self.communicator.all_gather_small(packing.pack(value))  # type: ignore[arg-type]  # bytes are taken
        return max(x for (x,) in packing.iter_unpack(all_values))


def layer_step(measured: Measurement, width: int, batch: int, sequence: int) -> tuple[Callable[[], object], float, int]:
    """A forward and backward of a layer, its operations and its width: the requested width, or a smaller one that takes
    a fraction of a second."""
    asked = {"width": max(64, width // 64 * 64), "sequence": sequence, "batch": batch}
    size = {"width": min(256, asked["width"]), "sequence": min(128, sequence), "batch": 1}
    while True:
        layer = Layer(size["width"]).to(measured.device, measured.dtype)
        x = torch.randn(
            size["batch"],
            size["sequence"],
            size["width"],
            device=measured.device,
            dtype=measured.dtype,
            requires_grad=True,
        )

        def step(layer=layer, x=x) -> None:
            layer(x).sum().backward()

        step()
        measured.settle()
        start = time.perf_counter()
        step()
        measured.settle()
        smaller = [name for name in size if size[name] < asked[name]]
        if not smaller or measured.worst(time.perf_counter() - start) > LAYER_SECONDS / 4:
            per_token = sum(p.numel() for p in layer.parameters()) + 2 * size["width"] * size["sequence"]
            return step, 6.0 * size["batch"] * size["sequence"] * per_token, size["width"]
        grows = min(smaller, key=lambda name: size[name] / asked[name])  # twice the width takes four times as long
        size[grows] = min(2 * size[grows], asked[grows])


def stream_rate(measured: Measurement) -> float:
    """Bytes per second of c = a + b on this rank's device."""
    a, b, c = (torch.ones(STREAM_BYTES // 4, device=measured.device) for _ in range(3))
    return 3 * STREAM_BYTES / measured.seconds_of(lambda: torch.add(a, b, out=c))


def host_rates(measured: Measurement, device_memory_rate: float) -> tuple[float, float]:
    """Bytes per second between device and host, in one direction, and of the host's memory, all ranks together."""
    host = torch.ones(STREAM_BYTES // 4, pin_memory=measured.device.type == "cuda")
    other = torch.empty_like(host, device=measured.device)
    link = STREAM_BYTES / measured.seconds_of(lambda: other.copy_(host, non_blocking=True))
    if measured.device.type == "cpu":
        return link, device_memory_rate * measured.world.local_size
    a, b, c = (torch.ones(STREAM_BYTES // 4) for _ in range(3))
    return link, measured.world.local_size * 3 * STREAM_BYTES / measured.seconds_of(lambda: torch.add(a, b, out=c))


def overlap_of(measured: Measurement, compute: Callable[[], object], compute_s: float) -> float:
    """Share of a gather that does not slow down a computation at the same time."""
    if measured.world.size == 1:
        return 1.0
    shard = torch.zeros(PAGE_BYTES // measured.world.size, dtype=torch.uint8, device=measured.device)
    gather_s = measured.seconds_of(lambda: measured.communicator.all_gather(shard))
    gathers = max(1, round(compute_s / gather_s))

    def gather() -> None:
        for _ in range(gathers):
            measured.communicator.all_gather(shard)

    def both() -> None:
        thread = threading.Thread(target=gather)
        thread.start()
        compute()
        thread.join()

    both_s = measured.seconds_of(both)
    shorter, longer = sorted((gathers * gather_s, compute_s))
    return min(1.0, max(0.0, (longer + shorter - both_s) / shorter))


def memory_bytes(measured: Measurement) -> tuple[int, int]:
    """Memory of this rank's device, and of the host."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if measured.device.type == "cuda":
        return torch.cuda.get_device_properties(measured.device).total_memory, host
    return host // measured.world.local_size, host


def measure_disk(measured: Measurement, folder: str) -> dict[str, float]:
    """The figures of the disk of `folder`. Raises IoError."""
    read, write = _C.measure_drive(folder) if measured.world.rank == 0 else (LEAST_RATE, LEAST_RATE)
    measured.say(f"disk: {read / 1e9:.2f} GB/s read, {write / 1e9:.2f} GB/s written")
    system = os.statvfs(folder)
    return {"disk": system.f_bavail * system.f_frsize, "disk_read_rate": read, "disk_write_rate": write}


def measure(measured: Measurement, width: int, batch: int, sequence: int) -> dict[str, float | str]:
    """All other figures, by their names in `zeropage plan`. Collective."""
    step, operations, width = layer_step(measured, width, batch, sequence)
    compute_s = measured.seconds_of(step)
    measured.say(f"a layer of width {width}: {operations / compute_s / 1e9:.1f} GFLOP/s a device")
    stream = stream_rate(measured)
    host_link, host_memory = host_rates(measured, stream)
    measured.say(f"memory: {stream / 1e9:.1f} GB/s a device, {host_memory / 1e9:.1f} GB/s of the host")
    gather, reduce, hop_s = _C.measure_links(measured.communicator, PAGE_BYTES, 2 * measured.seconds)
    link = 2 / (1 / gather + 1 / reduce) if gather else LEAST_RATE
    overlap = overlap_of(measured, step, compute_s)
    measured.say(
        f"links: {link / 1e9:.2f} GB/s, {hop_s * 1e6:.1f} us a hop, {100 * overlap:.0f} % overlapped with computation"
    )
    device_bytes, host_bytes = memory_bytes(measured)
    name = torch.cuda.get_device_name(measured.device) if measured.device.type == "cuda" else f"{platform.node()}'s CPU"
    return {
        "name": f"{name}, measured",
        "device": measured.device.type,
        "device_memory": device_bytes,
        "flops": operations / compute_s,
        "device_memory_rate": stream,
        "device_link_rate": link,
        "host_link_rate": host_link,
        "network_rate": link,
        "host_memory": host_bytes,
        "host_memory_rate": host_memory,
        "device_latency": hop_s,
        "network_latency": hop_s,
        "overlap": overlap,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m zeropage.tools.measure", description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="file for the figures")
    parser.add_argument("--precision", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--width", type=int, default=1024, help="width of the model's layers")
    parser.add_argument("--sequence", type=int, default=2048)
    parser.add_argument("--micro_batch", type=int, default=1)
    parser.add_argument("--disk_folder", default=".")
    options = parser.parse_args()
    measured = Measurement(DTYPES[options.precision])
    figures = measure(measured, options.width, options.micro_batch, options.sequence) | measure_disk(
        measured, options.disk_folder
    )
    if measured.world.rank == 0:
        with open(options.output, "w") as file:
            json.dump(figures, file, indent=2)
    measured.communicator.barrier()


if __name__ == "__main__":
    main()
