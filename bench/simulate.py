"""The step time that `zeropage simulate` predicts, with figures from `--measure`, compared with measured steps: stages
0 to 3 on 1, 2, 4 and 8 ranks.

The ranks take turns at measuring the machine, as `zeropage plan --measure` does, and at steps of every stage; the best
round of each figure and of each step counts, so other load on the machine affects neither. If there are more ranks than
cores, ranks share cores, and the measured figures include that. A ratio above 1 means that the step took longer than
predicted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import systems
import torch
from common import Block, emit, is_rank, run_ranks, take_turns

from zeropage.tools import measure

ROOT = Path(__file__).resolve().parent.parent
COMMAND = os.environ.get("ZEROPAGE_COMMAND", str(ROOT / ".venv" / "bin" / "zeropage"))
STAGES = (0, 1, 2, 3)
MODELS = {
    "10M": systems.MODELS["10M"],
    "25M": systems.GptConfig(layers=8, width=512, heads=8, context=128),
}
ROWS = 4
ROUNDS, STEPS = 6, 1


def as_config_json(config: systems.GptConfig) -> dict:
    """The model's config.json."""
    return {
        "model_type": "gpt2",
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_positions": config.context,
        "vocab_size": config.vocabulary,
    }


def simulated_s(model: str, ranks: int, figures: dict) -> dict[int, float]:
    """Seconds of a step by stage, as the command predicts."""
    config = MODELS[model]
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    seconds = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(as_config_json(config)))
        (folder / "machine.json").write_text(json.dumps(figures))
        work = ["--precision", "fp32", "--micro_batch", str(ROWS), "--sequence", str(config.context)]
        job = ["--num_gpus", str(ranks), "--device", str(folder / "machine.json"), *work, "--json"]
        for stage in STAGES:
            command = [COMMAND, "simulate", str(folder / "config.json"), *job, "--stage", str(stage)]
            found = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            )
            seconds[stage] = found["points"][-1]["step_s"]
    return seconds


def best_of(rounds: list[dict]) -> dict:
    """The highest rates, the shortest latencies; of the overlap, a difference of times, the median."""
    best = dict(rounds[0])
    for name in best:
        if isinstance(best[name], float):
            choose = statistics.median if name == "overlap" else min if name.endswith("latency") else max
            best[name] = choose(figures[name] for figures in rounds)
    return best


def measure_steps(model: str) -> None:
    """One rank."""
    config, rank, ranks = MODELS[model], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    batch = systems.batch_of(config, ROWS)
    steps = {stage: systems.engine(config, batch, stage) for stage in STAGES}
    measured = measure.Measurement(torch.float32, seconds=0.2)
    figures: list[dict] = []
    blocks: dict[int, list[Block]] = {stage: [] for stage in STAGES}
    for _ in range(ROUNDS):
        figures.append(measure.measure(measured, config.width, ROWS, config.context))
        for stage, of_round in take_turns(steps, 1, STEPS, barrier=measured.communicator.barrier).items():
            blocks[stage] += of_round
    if rank != 0:
        return
    machine = best_of(figures) | {
        "disk": 1e12,
        "disk_read_rate": 1e9,
        "disk_write_rate": 1e9,
    }  # no state is on a disk here
    emit(
        "machine",
        model=model,
        ranks=ranks,
        **{name: value for name, value in machine.items() if isinstance(value, float)},
    )
    for stage, expected_s in simulated_s(model, ranks, machine).items():
        measured_s = min(block.wall_s for block in blocks[stage])
        times = {"measured_ms": round(1e3 * measured_s, 1), "simulated_ms": round(1e3 * expected_s, 1)}
        emit("simulate", model=model, ranks=ranks, stage=stage, **times, ratio=round(measured_s / expected_s, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, help="only this one")
    parser.add_argument("--ranks", type=int, help="only so many")
    arguments = parser.parse_args()
    if is_rank():
        measure_steps(arguments.model)
        return
    for model in MODELS:
        for ranks in (1, 2, 4, 8):
            if arguments.model in (None, model) and arguments.ranks in (None, ranks):
                run_ranks(ranks, ["--model", model])


if __name__ == "__main__":
    main()
