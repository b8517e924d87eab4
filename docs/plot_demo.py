"""Draws docs/demo.png, the picture of the README, from what `make demo` recorded. Needs matplotlib."""

import json
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("parameters", "gradients", "optimizer")
COLORS = ("#3b6ea5", "#e0a030", "#7a9a4e")
MIB = 2**20


def main() -> None:
    runs = {int(stage): run for stage, run in json.loads((ROOT / "runs" / "demo.json").read_text()).items()}
    stages = sorted(runs)
    figure, (loss_axes, byte_axes) = plt.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    longest = max(stages, key=lambda stage: len(runs[stage]["losses"]))
    loss_axes.plot(
        range(1, len(runs[longest]["losses"]) + 1), runs[longest]["losses"], color="#333333", label=f"stage {longest}"
    )
    for stage, marker in zip((s for s in stages if s != longest), "o+x", strict=False):
        losses = runs[stage]["losses"]
        loss_axes.plot(
            range(1, len(losses) + 1), losses, marker, markersize=6, fillstyle="none", label=f"stage {stage}"
        )
    loss_axes.set(xlabel="step", ylabel="loss per byte of text (nats)", title="the same losses at every stage")
    loss_axes.legend(frameon=False)

    bottom = [0.0] * len(stages)
    for kind, color in zip(KINDS, COLORS, strict=True):
        heights = [max(rank[kind] for rank in runs[stage]["bytes"]) / MIB for stage in stages]
        byte_axes.bar([f"stage {stage}" for stage in stages], heights, bottom=bottom, color=color, label=kind)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    byte_axes.set(ylabel="MiB per rank, counted", title="model state on each of two ranks")
    byte_axes.legend(frameon=False)
    for axes in (loss_axes, byte_axes):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(ROOT / "docs" / "demo.png", dpi=110)


if __name__ == "__main__":
    main()
