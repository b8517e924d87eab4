"""`make demo-infinity`: trains a model whose state is more than ten times the memory that the process may use.

Parameters, gradients and optimizer state are in files in `--folder`. The process runs under a limit on its memory,
which includes Python, torch and all their libraries.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memory_limit import memory_limit

LIMIT_BYTES = 512 << 20
CONTEXT = 64
GRADIENT_BYTES = 4  # fp32
STATE_BYTES = 2 + GRADIENT_BYTES + 12  # 16-bit parameter, gradient, and master and two moments in fp32
RESERVED_BYTES = (
    2 * (2 + 12) + GRADIENT_BYTES + 4
)  # two copies of the state that a step changes, and the model in fp32 while it is built


def config_in(folder: str, width: int) -> dict:
    page_numel = 4 * width * width  # the largest matrix
    drive = {"device": "nvme", "nvme_path": folder, "buffer_count": 3}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "weight_decay": 0.01}},
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": drive,
            "offload_param": {**drive, "max_in_cpu": 0},
            "stage3_max_live_parameters": 4 * page_numel,
        },
        "aio": {"block_size": 1 << 20, "queue_depth": 16},
        "zeropage": {"page_numel": page_numel},
    }


def train(folder: str, steps: int, layers: int, width: int) -> dict:
    """Trains in the process under the limit. Returns the figures for `report`."""
    import torch
    from gpt import Gpt, GptConfig
    from text_data import LibraryText

    import zeropage
    from zeropage.report import progress

    config = config_in(folder, width)
    shape = GptConfig(layers=layers, width=width, context=CONTEXT, heads=width // 64, branch_gain=4.0)
    with zeropage.zero.Init(config_dict_or_path=config):
        model = Gpt(shape)
    engine, *_ = zeropage.initialize(model=model, config=config)
    inputs = torch.stack([LibraryText(CONTEXT)[0]])
    losses, seconds, traffic = [], [], [engine._core.disk_traffic()]
    began = time.monotonic()
    for batch in progress(
        itertools.repeat(inputs, steps), engine, total_steps=steps, unit="tokens", units_per_sample=CONTEXT
    ):
        engine.backward(engine(batch))
        engine.step()
        losses.append(engine.mean_loss())
        seconds.append(time.monotonic() - began)
        traffic.append(engine._core.disk_traffic())
    numel = engine._core.trainable_numel
    return {"losses": losses, "seconds": seconds, "traffic": traffic, "numel": numel}


def report(run: dict, peak_bytes: int, how: str) -> bool:
    """Prints the figures. Returns whether the state was at least ten times the limit, and the peak within it."""
    numel, steps = run["numel"], len(run["losses"])
    state = STATE_BYTES * numel
    # The first step has no trace yet and includes the set-up, so the rates are those of the later steps.
    step_s = (run["seconds"][-1] - run["seconds"][0]) / (steps - 1)
    read, written, waited_s = (
        (last - first) / (steps - 1) for first, last in zip(run["traffic"][1], run["traffic"][-1], strict=True)
    )
    bytes_each = f"{STATE_BYTES} bytes each: parameter 2, gradient {GRADIENT_BYTES}, master and moments 12"
    daily = written * 86400 / step_s
    print(f"""
model          {numel / 1e6:.0f} million parameters; state {state / 1e9:.2f} GB ({bytes_each})
memory         peak {peak_bytes / 1e6:.0f} MB of {LIMIT_BYTES / 1e6:.0f} MB, Python and torch included: the state is {
        state / LIMIT_BYTES:.1f} times the limit
limit          {how}
loss           {run["losses"][0]:.3f} -> {run["losses"][-1]:.3f} in {steps} steps of {step_s:.1f} s
read           {read / 1e9:.2f} GB per step, {read / numel:.1f} bytes per parameter; formula 12+g = {
        12 + GRADIENT_BYTES
    } in the update, and 2 in each of two passes
written        {written / 1e9:.2f} GB per step, {
        written / numel:.1f} bytes per parameter; formula 14 in the update, and g = {GRADIENT_BYTES} in the backward
drive          {(read + written) / step_s / 1e9:.2f} GB/s; waiting for it {100 * waited_s / step_s:.0f} % of the time,
               so the limit is {"the drive" if waited_s > step_s / 2 else "computing"}
endurance      {daily / 1e12:.1f} TB written per day; a drive rated for 600 TB lasts {600e12 / daily:.0f} days""")
    return state >= 10 * LIMIT_BYTES and peak_bytes <= LIMIT_BYTES and run["losses"][-1] < run["losses"][0]


def run_limited(arguments: argparse.Namespace, result: Path) -> bool:
    with memory_limit(LIMIT_BYTES) as limit:
        print(f"demo-infinity: {limit.how}; state in {arguments.folder}", flush=True)
        command = [
            sys.executable,
            __file__,
            *(f"--{name}={getattr(arguments, name)}" for name in ("folder", "steps", "layers", "width")),
        ]
        command.append(f"--result={result}")
        # With one pool of malloc, other threads can reuse a thread's freed memory.
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": str(min(4, os.cpu_count() or 1))}
        done = subprocess.run(command, env=environment, preexec_fn=limit.enter)
        if done.returncode:
            sys.exit(
                f"demo-infinity: the training failed with exit code {done.returncode} (-9: it needed more memory); its error is above"
            )
        return report(json.loads(result.read_text()), limit.peak_bytes(), limit.how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", default=tempfile.gettempdir(), help="a folder on the drive; a folder in memory would prove nothing"
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--layers", type=int, default=43)
    parser.add_argument("--width", type=int, default=768, help="a multiple of 64")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.result is not None:
        arguments.result.write_text(
            json.dumps(train(arguments.folder, arguments.steps, arguments.layers, arguments.width))
        )
        return
    needed = RESERVED_BYTES * 12 * arguments.layers * arguments.width**2
    free = shutil.disk_usage(arguments.folder).free
    if free < needed:
        sys.exit(
            f"demo-infinity: needs {needed / 1e9:.0f} GB in {arguments.folder}, {free / 1e9:.0f} are free; name another folder with --folder"
        )
    with tempfile.TemporaryDirectory() as scratch:
        if not run_limited(arguments, Path(scratch) / "result.json"):
            sys.exit("demo-infinity: this is not what it should show, see above")


if __name__ == "__main__":
    main()
