"""TRL's supervised fine-tuning, on a model that from_pretrained makes."""

import json
from pathlib import Path

import pytest
from processes import run_processes
from tiny import assert_alike

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_alias")]


def test_supervised_fine_tuning(tmp_path: Path):
    """Catches a model made by from_pretrained under zero.Init with other values, and a training that differs from plain DDP."""
    folder = tmp_path / "model"
    model = run_processes(1, "trl_runs", "make_model", json.dumps({"folder": str(folder)}), tmp_path, timeout_s=120)[0]
    options = {"model": model, "folder": str(tmp_path)}
    for rank in run_processes(2, "trl_runs", "train_everywhere", json.dumps(options), tmp_path, timeout_s=300):
        assert_alike(rank)
