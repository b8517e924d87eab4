"""What programs do with transformers round a training: checkpoints, generation, a schedule of the configuration."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import run_processes
from tiny import PLAIN, assert_alike

from zeropage.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_alias")]


def on_two_ranks(function: str, folder: Path) -> list[Any]:
    return run_processes(2, "behaviour_runs", function, json.dumps({"folder": str(folder)}), folder, timeout_s=240)


def test_checkpoints_of_the_trainer(tmp_path: Path):
    """Catches folders that transformers cannot resume from, a best model that is not the best, and exports that differ from the model."""
    for rank in on_two_ranks("checkpoints", tmp_path):
        assert_alike(rank)
    for stage in ("2", "3"):
        folder = tmp_path / stage / "checkpoint-4"
        assert (folder / "global_step4").is_dir() and (folder / "latest").is_file() and (folder / "zero_to_fp32.py").is_file()
        subprocess.run([sys.executable, str(folder / "zero_to_fp32.py"), str(folder), str(tmp_path / f"out{stage}")], check=True, timeout=60)
        state = get_fp32_state_dict_from_zero_checkpoint(folder)
        assert state["model.embed_tokens.weight"].shape == (64, 32)
        assert list((tmp_path / f"out{stage}").glob("*.safetensors"))


def test_ranks_generate_to_different_lengths(tmp_path: Path):
    """Catches a rank that waits for one which has stopped generating, and tokens that differ from the plain model's."""
    for rank in on_two_ranks("generate", tmp_path):
        assert rank["3"] == rank[PLAIN]


def test_a_schedule_is_filled_in(tmp_path: Path):
    """Catches "auto" in a schedule that the Trainer fills in and the engine reads otherwise: two steps of warm-up, then down to 0."""
    for rates in on_two_ranks("configured_schedule", tmp_path):
        assert rates == pytest.approx([0.0, 0.005, 0.01, 0.005])
