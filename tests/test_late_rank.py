"""A rank that stops in the middle of training: the others report which rank is late, and where every rank is."""

import json
import os
import re
import time
from pathlib import Path

import pytest
import torch
from processes import run_processes
from torch import nn

import zeropage
from zeropage.errors import ZeropageError

WORLD = 3
TIMEOUT_MS = 4000


def wait_for_files(folder: Path, pattern: str, count: int) -> None:
    end = time.monotonic() + 200
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < end, f"fewer than {count} of {pattern} in {folder}"
        time.sleep(0.02)


def train_with_a_late_rank(transport: str, folder: str) -> str:
    """Three ranks; rank 1 waits before its third step until another one has ended. The error that ends this rank's
    training."""
    torch.manual_seed(0)
    # The timeout is for ranks that train: importing torch takes longer than that on a busy machine.
    place = Path(folder)
    (place / f"imported{os.environ['RANK']}").touch()
    wait_for_files(place, "imported*", WORLD)
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
                wait_for_files(place, "ended*", 1)
            engine.backward(engine(torch.ones(1, 32)).square().mean())
            engine.step()
    except ZeropageError as error:
        (place / f"ended{engine.global_rank}").touch()
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.mark.parametrize("transport", ["shared_memory", "c10d"])
def test_the_late_rank_is_named_and_where_all_are(transport: str, tmp_path: Path) -> None:
    """Catches a hang, an error that blames a rank that waits, and one without the page that each rank was at."""
    arguments = json.dumps({"transport": transport, "folder": str(tmp_path)})
    errors = run_processes(WORLD, "test_late_rank", "train_with_a_late_rank", arguments, tmp_path, timeout_s=240)
    first = next(error for error in errors if error.startswith("TimeoutError"))
    assert re.search(r"missing: rank 1\b", first), first
    for rank in range(WORLD):
        assert re.search(rf"\brank {rank}\b[^;]*collective", first), first
    assert re.search(r"page \d+ \([02]\.(weight|bias)\)", first), "the page and its parameters"
    assert all("Error: " in error for error in errors)
