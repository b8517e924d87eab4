"""Lightning's DeepSpeedStrategy: the same losses and weights as its DDPStrategy."""

import json
from pathlib import Path

import pytest
from processes import run_processes
from tiny import assert_alike

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_alias")]


def test_the_strategy_of_lightning(tmp_path: Path):
    """Catches names that Lightning imports and misses, a schedule that is stepped twice or never, an evaluation that
    needs an optimizer, and a checkpoint without Lightning's own state."""
    for rank in run_processes(
        2, "lightning_runs", "train_everywhere", json.dumps({"folder": str(tmp_path)}), tmp_path, timeout_s=240
    ):
        assert_alike(rank)
