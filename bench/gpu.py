"""Step time and memory on GPUs, compared with plain PyTorch, FSDP2 and DeepSpeed, within a budget of seconds.

Every row runs in separate processes with a timeout, the most important rows first; rows beyond the budget are named.
First the machine itself is measured (`gpu_machine.py`). Each row is one line of JSON: `ms` (median) and `ms_min` of a
step, `host_ms` for the host to launch it, `after_backward_ms` from the end of the backward to the end of the step, peak
bytes allocated and reserved, first and last loss. A table follows. With two or more GPUs all rows run once more with
one rank per GPU.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_machine
import gpu_systems
import torch
from common import free_port

WARM_UP_STEPS = 4
STEPS = 12
ROW_TIMEOUT_S = 90
REFERENCE = "plain, bf16 with fp32 masters"


def backend(device: torch.device) -> Any:
    """torch.cuda, or the module of another accelerator; None on the CPU."""
    return None if device.type == "cpu" else torch.get_device_module(device)


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        backend(device).synchronize()


def peak_bytes(device: torch.device) -> dict[str, int]:
    """Peaks of the device's allocator since the process began; empty on the CPU."""
    if device.type == "cpu":
        return {}
    memory = torch.accelerator
    return {"peak_allocated_bytes": memory.max_memory_allocated(), "peak_reserved_bytes": memory.max_memory_reserved()}


def time_steps(system: gpu_systems.System, device: torch.device) -> dict[str, Any]:
    """Figures of STEPS steps after WARM_UP_STEPS. The losses are those of the very first and the last step."""
    losses, whole, host, after = [], [], [], []
    for step in range(WARM_UP_STEPS + STEPS):
        synchronize(device)
        begin = time.perf_counter()
        losses.append(system.backward())
        launched_backward = time.perf_counter()
        synchronize(device)
        backward_done = time.perf_counter()
        system.step()
        launched = time.perf_counter()
        synchronize(device)
        end = time.perf_counter()
        if step >= WARM_UP_STEPS:
            after.append(end - backward_done)
            host.append(launched_backward - begin + launched - backward_done)
    for _ in range(STEPS):  # no synchronization between the steps
        begin = time.perf_counter()
        losses.append(system.backward())
        system.step()
        synchronize(device)
        whole.append(time.perf_counter() - begin)
    ms = {
        "ms": statistics.median(whole),
        "ms_min": min(whole),
        "host_ms": statistics.median(host),
        "after_backward_ms": statistics.median(after),
    }
    first, last = losses[0].float().item(), losses[-1].float().item()
    return {
        **{name: round(1e3 * seconds, 3) for name, seconds in ms.items()},
        "first_loss": round(first, 5),
        "last_loss": round(last, 5),
    }


def profile(system: gpu_systems.System, device: torch.device) -> None:
    """Prints the kernels, launches and synchronisations of three steps, and the bytes per second of the update
    kernels."""
    activities = [torch.profiler.ProfilerActivity.CPU] + (
        [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    )
    with torch.profiler.profile(activities=activities) as profiled:
        for _ in range(3):
            system.backward()
            system.step()
        synchronize(device)
    events = profiled.key_averages()
    order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(events.table(sort_by=order, row_limit=40), file=sys.stderr)
    calls = {
        event.key: event.count
        for event in events
        if "Launch" in event.key or "Synchronize" in event.key or "Memcpy" in event.key
    }
    print(json.dumps({"bench": "gpu_profile", "steps": 3, "calls": calls}), flush=True)


def run_row(model: str, name: str, device: torch.device, profiled: bool) -> None:
    """Runs one rank of one row in this process."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if device.type != "cpu":
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
        torch.accelerator.set_device_index(device.index)
    if "FSDP2" in name or name == "DDP":
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    make = {**gpu_systems.contestants(model), "DDP": lambda d, b: gpu_systems.ddp(model, d, b)}[name]
    system = make(device, gpu_systems.batch_on(model, device, rank))
    figures = time_steps(system, device) | peak_bytes(device)
    if profiled and rank == 0:
        profile(system, device)
    if system.predicted_bytes is not None:
        figures["predicted_state_bytes"] = system.predicted_bytes
    if rank == 0:
        print(json.dumps({"bench": "gpu", "model": model, "ranks": size, "row": name, **figures}), flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def start_row(arguments: list[str], ranks: int, timeout_s: float) -> dict[str, Any]:
    """Runs one row as `ranks` processes. Returns its figures, or the reason for having none."""
    job = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = []
    for rank in range(ranks):
        environ = {
            **os.environ,
            **{key: str(value) for key, value in {**job, "RANK": rank, "LOCAL_RANK": rank}.items()},
        }
        command = [sys.executable, str(Path(__file__)), *arguments]
        processes.append(
            subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    deadline = time.monotonic() + timeout_s
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=max(1.0, deadline - time.monotonic())))
    except subprocess.TimeoutExpired:
        return {"error": f"no result after {timeout_s:.0f} s"}
    finally:
        for process in processes:
            process.kill()
            process.wait()
    failed = next((errors for process, (_, errors) in zip(processes, outputs, strict=True) if process.returncode), None)
    if failed is not None:
        return {"error": (failed.strip().splitlines() or ["no message"])[-1][:300]}
    lines = [json.loads(line) for line in outputs[0][0].splitlines() if line.startswith("{")]
    return {key: value for line in lines for key, value in line.items()}


def table(results: list[dict[str, Any]]) -> str:
    """Aligned lines; `of plain` is the ratio of the median step to that of the reference row of the same model and
    ranks."""
    reference = {(row["model"], row["ranks"]): row.get("ms") for row in results if row["row"] == REFERENCE}
    lines = [f"{'model':6} {'ranks':>5}  {'row':72} {'ms':>9} {'of plain':>8} {'after bwd':>9} {'peak GB':>8}  losses"]
    for row in results:
        head = f"{row['model']:6} {row['ranks']:5}  {row['row']:72}"
        if "ms" not in row:
            lines.append(f"{head} {row['error']}")
            continue
        plain = reference.get((row["model"], row["ranks"]))
        ratio = f"{row['ms'] / plain:8.3f}" if plain else f"{'':8}"
        peak = f"{row['peak_allocated_bytes'] / 1e9:8.2f}" if "peak_allocated_bytes" in row else f"{'':8}"
        lines.append(
            f"{head} {row['ms']:9.2f} {ratio} {row['after_backward_ms']:9.2f} {peak}  {row['first_loss']:.4f} {row['last_loss']:.4f}"
        )
    return "\n".join(lines)


def measure_all(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Measures every row that fits the budget, and prints each as soon as it is measured."""
    end = time.monotonic() + arguments.budget_s
    gpus = backend(device).device_count() if device.type != "cpu" else 1
    results = []
    for ranks in sorted({1, gpus}) if arguments.ranks is None else [arguments.ranks]:
        rows = {model: list(gpu_systems.contestants(model)) for model in arguments.models}
        if ranks > 1:
            rows = {model: ["DDP", *names] for model, names in rows.items()}
        # The rows of all models in turn, so that a short budget has the first rows of each.
        jobs = [
            (model, names[i])
            for i in range(max(map(len, rows.values())))
            for model, names in rows.items()
            if i < len(names)
        ]
        for model, name in jobs:
            if arguments.rows and name not in arguments.rows:
                continue
            left = end - time.monotonic()
            if left < 5:
                found = {"error": f"left out: the budget of {arguments.budget_s} s is used up (--budget_s)"}
            else:
                row = [
                    "--model",
                    model,
                    "--row",
                    name,
                    "--device",
                    device.type,
                    *(["--profile"] if arguments.profile else []),
                ]
                found = start_row(row, ranks, min(ROW_TIMEOUT_S, left))
            results.append({"bench": "gpu", "model": model, "ranks": ranks, "row": name, **found})
            print(json.dumps(results[-1]), flush=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget_s", type=float, default=240, help="seconds for all rows together")
    parser.add_argument("--models", nargs="+", default=["1.3B", "350M"], choices=gpu_systems.MODELS)
    parser.add_argument("--rows", nargs="+", help="only these, by name")
    parser.add_argument("--ranks", type=int, help="only this number of ranks; default: one, and one per GPU")
    parser.add_argument("--device", help="default: the accelerator of this machine")
    parser.add_argument("--out", type=Path, help="also write gpu.jsonl and gpu.txt into this folder")
    parser.add_argument(
        "--profile", action="store_true", help="kernels, launches and synchronisations of each row, on stderr"
    )
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    found = torch.accelerator.current_accelerator()
    if arguments.device is None and found is None:
        print("gpu: there is no accelerator on this machine; --device cpu tries the rows without one", file=sys.stderr)
        return 1
    device = torch.device(arguments.device or found)
    if arguments.row is not None:
        run_row(arguments.model, arguments.row, device, arguments.profile)
        return 0
    machine = gpu_machine.measure(device)
    print(json.dumps(machine), flush=True)
    results = measure_all(arguments, device)
    text = table(results)
    print(text, flush=True)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "gpu.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [machine, *results]))
        (arguments.out / "gpu.txt").write_text(text + "\n")
    return 0 if any("ms" in row for row in results) else 1


if __name__ == "__main__":
    sys.exit(main())
