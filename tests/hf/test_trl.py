"""TRL's trainers: supervised fine-tuning, DPO with a reference model or with its log probabilities computed ahead,
reward models, GRPO."""

import json
from pathlib import Path

import pytest
from processes import run_processes
from tiny import assert_alike

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_alias")]


def test_every_trainer(tmp_path: Path):
    """Catches a model made by from_pretrained under zero.Init with other values, a reference model without an optimizer
    that is moved or refused, a model that a destroyed engine held before, and generation between steps that samples
    other words or leaves parameters whole."""
    folder = tmp_path / "model"
    model = run_processes(1, "trl_runs", "make_model", json.dumps({"folder": str(folder)}), tmp_path, timeout_s=120)[0]
    options = {"model": model, "folder": str(tmp_path)}
    for rank in run_processes(2, "trl_runs", "train_everywhere", json.dumps(options), tmp_path, timeout_s=300):
        assert rank.keys() == {"sft", "dpo", "dpo precomputed", "reward", "grpo"}
        for runs in rank.values():
            assert_alike(runs)
            assert all(run["loss"] for run in runs.values())
