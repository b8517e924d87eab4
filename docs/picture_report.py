"""Draws docs/report.png, the README's picture of a report: trains a small model on two ranks at stage 3 with a few
pages live, makes the page and photographs it. Needs the built command and Chromium or Chrome."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from browser import Browser, find_browser  # noqa: E402

COMMAND = ROOT / ".venv" / "bin" / "zeropage"
CONFIG = {
    "train_micro_batch_size_per_gpu": 8,
    "bf16": {"enabled": True},
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01}},
    "scheduler": {
        "type": "WarmupCosineLR",
        "params": {"warmup_num_steps": 20, "total_num_steps": 120, "warmup_type": "linear", "cos_min_ratio": 0.1},
    },
    "zero_optimization": {
        "stage": 3,
        "stage3_max_live_parameters": 1_500_000,
        "stage3_param_persistence_threshold": 1000,
    },
}


def main() -> None:
    browser = find_browser()
    if browser is None:
        sys.exit("no Chromium or Chrome is installed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = {"zeropage": {"metrics_file": str(folder / "first.jsonl")}}
        (folder / "config.json").write_text(json.dumps(CONFIG | own))
        train = [
            COMMAND,
            "--num_gpus=2",
            ROOT / "examples" / "train_gpt.py",
            "--config",
            folder / "config.json",
            "--steps=120",
        ]
        subprocess.run(train, check=True)
        subprocess.run([COMMAND, "report", folder / "first.jsonl"], check=True)
        with Browser(browser, folder / "profile") as opened:
            opened.take_picture(folder / "first.html", 1120, 1500, ROOT / "docs" / "report.png")


if __name__ == "__main__":
    main()
