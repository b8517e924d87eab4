"""What `zeropage simulate` says a step takes, with the figures that `--measure` finds, against steps: stages 0 to 3 on 1, 2, 4 and 8 ranks.

For each number of ranks: the machine is measured as that many ranks at once use it, then every stage is simulated and run. Ranks that are
more than the cores share them, which measuring sees. A ratio above 1 means that the step took longer than was said.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import systems
from common import emit, is_rank, run_ranks, take_turns

ROOT = Path(__file__).resolve().parent.parent
COMMAND = os.environ.get("ZEROPAGE_COMMAND", str(ROOT / ".venv" / "bin" / "zeropage"))
STAGES = (0, 1, 2, 3)
MODELS = {
    "10M": systems.MODELS["10M"],
    "25M": systems.GptConfig(layers=8, width=512, heads=8, context=128),
}
ROWS = 4
ROUNDS, STEPS = 7, 2


def as_config_json(config: systems.GptConfig) -> dict:
    """The model as its config.json would have it."""
    return {
        "model_type": "gpt2",
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_positions": config.context,
        "vocab_size": config.vocabulary,
    }


def request_of(model: str, ranks: int, folder: Path) -> list[str]:
    """The arguments that plan and simulate share."""
    config = MODELS[model]
    (folder / "config.json").write_text(json.dumps(as_config_json(config)))
    work = ["--precision", "fp32", "--micro_batch", str(ROWS), "--sequence", str(config.context)]
    return [str(folder / "config.json"), "--num_gpus", str(ranks), *work]


def simulated_s(model: str, ranks: int) -> dict[int, float]:
    """Seconds of a step by stage."""
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    with tempfile.TemporaryDirectory() as name:
        request = request_of(model, ranks, Path(name))
        machine = str(Path(name) / "machine.json")
        measure = [COMMAND, "plan", *request, "--measure", "--save_machine", machine, "--disk_folder", name]
        subprocess.run(measure, check=True, stdout=subprocess.DEVNULL, env=environment)
        emit("machine", ranks=ranks, model=model, **{k: v for k, v in json.loads(Path(machine).read_text()).items() if k != "name"})
        seconds = {}
        for stage in STAGES:
            simulate = [COMMAND, "simulate", *request, "--device", machine, "--stage", str(stage), "--json"]
            found = json.loads(subprocess.run(simulate, check=True, capture_output=True, text=True).stdout)
            seconds[stage] = found["points"][-1]["step_s"]
        return seconds


def measure_steps(model: str, simulated: dict[str, float]) -> None:
    """One rank: all stages take turns."""
    config = MODELS[model]
    batch = systems.batch_of(config, ROWS)
    steps = {stage: systems.engine(config, batch, stage) for stage in STAGES}
    blocks = take_turns(steps, ROUNDS, STEPS)
    if int(os.environ["RANK"]) != 0:
        return
    for stage, of_stage in blocks.items():
        measured_s = min(block.wall_s for block in of_stage)  # as the machine's figures are: what else it does is left out
        emit(
            "simulate",
            model=model,
            ranks=int(os.environ["WORLD_SIZE"]),
            stage=stage,
            measured_ms=round(1e3 * measured_s, 1),
            simulated_ms=round(1e3 * simulated[str(stage)], 1),
            ratio=round(measured_s / simulated[str(stage)], 2),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, help="only this one")
    parser.add_argument("--ranks", type=int, help="only so many")
    parser.add_argument("--simulated", type=json.loads, help=argparse.SUPPRESS)  # seconds by stage, for a rank
    arguments = parser.parse_args()
    if is_rank():
        measure_steps(arguments.model, arguments.simulated)
        return
    for model in MODELS:
        for ranks in (1, 2, 4, 8):
            if arguments.model in (None, model) and arguments.ranks in (None, ranks):
                simulated = json.dumps(simulated_s(model, ranks))
                run_ranks(ranks, ["--model", model, "--simulated", simulated])


if __name__ == "__main__":
    main()
