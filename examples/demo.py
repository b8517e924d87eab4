"""`make demo`: trains the language model on two ranks at stage 2, then briefly at the other stages, and compares
them."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from zeropage.report import MEMORY_KINDS, format_bytes

HERE = Path(__file__).resolve().parent
MAIN_STAGE, MAIN_STEPS = 2, 24
OTHER_STAGES, OTHER_STEPS = (0, 1, 3), 5
SHOWN_STEPS = (1, 2, 5)


def train(stage: int, steps: int, result: Path) -> dict:
    """Runs the example on two ranks; returns the results that its rank 0 wrote."""
    command = ["zeropage", "--num_gpus=2", str(HERE / "train_gpt.py"), f"--steps={steps}"]
    if stage != MAIN_STAGE:
        command.append(f"--stage={stage}")
    print(f"\n== stage {stage}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    beside_python = os.fspath(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([beside_python, os.environ.get("PATH", os.defpath)])}
    program = shutil.which("zeropage", path=environment["PATH"])
    if program is None:
        sys.exit("demo: the `zeropage` command is missing; run `make setup` or `pip install .` first")
    done = subprocess.run([program, *command[1:], f"--result={result}"], env=environment)
    if done.returncode:
        sys.exit(f"demo: the run at stage {stage} failed with exit code {done.returncode}; its error is above")
    print(f"== took {time.monotonic() - started:.0f} s", flush=True)
    return json.loads(result.read_text())


def table(rows: list[list[str]]) -> str:
    """Aligns the first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(lines)


def comparison(runs: dict[int, dict]) -> str:
    """Loss at the same steps, and bytes per rank by kind, stages side by side."""
    stages = sorted(runs)
    rows = [["", *(f"stage {stage}" for stage in stages)]]
    for step in SHOWN_STEPS:
        rows.append([f"loss at step {step}", *(f"{runs[stage]['losses'][step - 1]:.4f}" for stage in stages)])
    largest = {
        stage: {kind: max(rank[kind] for rank in runs[stage]["bytes"]) for kind in MEMORY_KINDS} for stage in stages
    }
    for kind in MEMORY_KINDS:
        name = "frames (peak)" if kind == "frames" else kind
        rows.append([f"{name} per rank", *(format_bytes(largest[stage][kind]) for stage in stages)])
    state = {stage: sum(largest[stage][kind] for kind in MEMORY_KINDS[:3]) for stage in stages}
    rows.append(["model state per rank", *(format_bytes(state[stage]) for stage in stages)])
    rows.append(["  by the formula", *(format_bytes(sum(runs[stage]["formula"].values())) for stage in stages)])
    rows.append(["  of stage 0", *(f"{100 * state[stage] / state[0]:.0f} %" for stage in stages)])
    return table(rows)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        runs = {MAIN_STAGE: train(MAIN_STAGE, MAIN_STEPS, result)}
        for stage in OTHER_STAGES:
            runs[stage] = train(stage, OTHER_STEPS, result)
    losses = runs[MAIN_STAGE]["losses"]
    print(
        f"\nOne configuration, four stages, two ranks. At stage {MAIN_STAGE} the loss fell from {losses[0]:.2f} to {losses[-1]:.2f}.\n"
    )
    print(comparison(runs))
    record = HERE.parent / "runs" / "demo.json"
    record.parent.mkdir(exist_ok=True)
    record.write_text(json.dumps(runs))
    print(f"\nThe figures are in {os.path.relpath(record)}; `python docs/plot_demo.py` draws them (needs matplotlib).")


if __name__ == "__main__":
    main()
