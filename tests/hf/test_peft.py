"""PEFT's adapters on a frozen base: trained and saved as under plain DDP."""

import json
from pathlib import Path

import pytest
from processes import run_processes
from tiny import PLAIN, assert_alike

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_alias")]


def test_lora_through_the_trainer(tmp_path: Path):
    """Catches a frozen base that changes, adapters that train differently than under DDP, and saved adapters that are
    empty or cut."""
    ranks = run_processes(
        2, "peft_runs", "train_everywhere", json.dumps({"folder": str(tmp_path)}), tmp_path, timeout_s=240
    )
    for rank in ranks:
        assert_alike(rank)
    adapter = ranks[0][PLAIN]["adapter"]
    assert len(adapter) == 8 and all(value.abs().max() > 0 for value in adapter.values())
