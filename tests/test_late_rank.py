"""A rank that stops in the middle of training: the others say who is late, and where every rank is."""

import json
import re
import time
from pathlib import Path

import pytest
import torch
from processes import run_processes
from torch import nn

import zeropage
from zeropage.errors import ZeropageError

TIMEOUT_MS = 1500


def train_with_a_late_rank(transport: str) -> str:
    """Three ranks; rank 1 falls asleep before its third step. The error that ends this rank's training."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
        "zeropage": {"communicator": transport, "timeout_ms": TIMEOUT_MS, "page_numel": 1},
    }
    engine, *_ = zeropage.initialize(model=net, config=config)
    try:
        for step in range(4):
            if engine.global_rank == 1 and step == 2:
                time.sleep(3 * TIMEOUT_MS / 1000)
            engine.backward(engine(torch.ones(1, 32)).square().mean())
            engine.step()
    except ZeropageError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.mark.parametrize("transport", ["shared_memory", "c10d"])
def test_the_late_rank_is_named_and_where_all_are(transport: str, tmp_path: Path) -> None:
    """Catches a hang, an error that blames a rank that waits, and one that does not say which page everybody was at."""
    errors = run_processes(3, "test_late_rank", "train_with_a_late_rank", json.dumps({"transport": transport}), tmp_path)
    first = next(error for error in errors if error.startswith("TimeoutError"))
    assert re.search(r"missing: rank 1\b", first), first
    for rank in range(3):
        assert re.search(rf"\brank {rank}\b[^;]*collective", first), first
    assert re.search(r"page \d+ \([02]\.(weight|bias)\)", first), "the page and its parameters"
    assert all("Error: " in error for error in errors)
