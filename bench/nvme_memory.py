"""Memory of a model of 300 million parameters at stage 3 with its state on a drive, against the plan's figure: the
target is 1.05 of it.

Compares the engine's counters (state, frames, buffers, at their peaks) and the memory of the process beyond torch
itself, including activations.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import emit

import zeropage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from gpt import Gpt, GptConfig

SEQUENCE = 64


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (the peak), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=None, help="a folder on the drive; default: a temporary folder")
    parser.add_argument("--layers", type=int, default=43)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    shape = GptConfig(layers=options.layers, width=options.width, context=SEQUENCE, heads=12)
    with torch.device("meta"):
        plan = zeropage.plan(Gpt(shape), sequence=SEQUENCE)
    row = next(row for row in plan.rows if row["offload"] == "optimizer: disk, parameters: disk")
    kinds = ("parameters_bytes", "gradients_bytes", "optimizer_bytes", "frames_bytes", "buckets_bytes", "host_bytes")
    planned = sum(row[kind] for kind in kinds)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        config = row["config"]
        for section in ("offload_optimizer", "offload_param"):
            config["zero_optimization"][section]["nvme_path"] = folder
        torch.ones(64, 64).bfloat16() @ torch.ones(
            64, 64
        ).bfloat16()  # allocates what torch needs for its first computation
        base = resident("VmRSS")
        with zeropage.zero.Init(config_dict_or_path=config):
            model = Gpt(shape)
        engine, *_ = zeropage.initialize(model=model, config=config)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, so that it is of the training
        tokens = torch.zeros(1, SEQUENCE + 1, dtype=torch.long)
        began = time.monotonic()
        after = []
        for _ in range(options.steps):
            engine.backward(engine(tokens))
            engine.step()
            after.append(resident("VmRSS"))
        counted = sum(peak for host in (False, True) for _, peak in engine._core.measured_bytes(host=host).values())
        taken = resident("VmHWM") - base
        emit(
            "nvme_memory",
            parameters=engine._core.trainable_numel,
            step_s=round((time.monotonic() - began) / options.steps, 2),
            planned_mb=round(planned / 1e6),
            planned_activations_mb=round(row["plain"]["activations_bytes"] / 1e6),
            counted_peak_mb=round(counted / 1e6),
            counted_of_plan=round(counted / planned, 3),
            process_mb=round(taken / 1e6),
            process_of_plan=round(taken / (planned + row["plain"]["activations_bytes"]), 3),
            growth_since_second_step_mb=round((after[-1] - after[1]) / 1e6, 1),
        )


if __name__ == "__main__":
    main()
