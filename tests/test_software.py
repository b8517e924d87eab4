"""Ranks with other versions of torch, or other instructions of their processors, may compute other bits, which is
reported."""

import pytest
import torch
from processes import start_ranks

import zeropage

WARNING = "ranks run different software"


def make_engine() -> None:
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        "zeropage": {"timeout_ms": 60_000},
    }
    zeropage.initialize(model=torch.nn.Linear(3, 1), config=config)


@pytest.mark.parametrize("differs", [False, True])
def test_other_instructions_are_reported_once(differs, tmp_path):
    """Catches ranks whose copies of whole values silently become different, and a warning where nothing differs."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this processor has nothing to leave out")
    variables = [{}, {"ATEN_CPU_CAPABILITY": "default"} if differs else {}]
    ranks = start_ranks(2, "test_software", "make_engine", "{}", tmp_path, variables)
    messages = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], messages
    assert messages[1].count(WARNING) == 0
    assert messages[0].count(WARNING) == (1 if differs else 0), messages
    if differs:
        assert (
            "rank(s) 1 differ from rank 0" in messages[0]
            and "CPU capability" in messages[0]
            and "ATEN_CPU_CAPABILITY" in messages[0]
        )
