"""Accelerate's own training loop with a DeepSpeedPlugin: the same losses, norms, rates and weights as under plain
DDP."""

import json
from pathlib import Path

import pytest
from processes import run_processes
from tiny import PLAIN, assert_alike

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_alias")]


def test_the_loop_of_accelerate(tmp_path: Path):
    """Catches an engine, optimizer or schedule that Accelerate cannot drive, with the program's optimizer or a dummy,
    and a state that load_state does not restore."""
    for rank in run_processes(
        2, "accelerate_runs", "train_everywhere", json.dumps({"folder": str(tmp_path)}), tmp_path, timeout_s=240
    ):
        assert_alike(rank)
        assert rank[PLAIN]["again"] == [0, 0]
