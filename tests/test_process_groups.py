"""Torch's process groups that a script makes and destroys, before and between those of zeropage."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes


def make_and_destroy_groups(late_rank: int) -> list[float]:
    """One group of torch's own, then three of zeropage; `late_rank` destroys each later than the other. Their sums over the ranks."""
    import torch.distributed as dist

    import zeropage.comm as comm

    sums: list[Any] = []
    for make in (dist.init_process_group, comm.init_distributed, comm.init_distributed, comm.init_distributed):
        make("gloo")
        value = torch.tensor(dist.get_rank() + 1.0)
        dist.all_reduce(value)
        sums.append(value.item())
        if dist.get_rank() == late_rank:
            time.sleep(0.3)
        dist.destroy_process_group()
    return sums


def test_groups_are_made_again_after_they_were_destroyed(tmp_path: Path):
    """Catches a rank that meets the others through the store, or by the addresses, of groups that were destroyed before."""
    for late_rank in (0, 1):
        arguments = json.dumps({"late_rank": late_rank})
        assert run_processes(2, "test_process_groups", "make_and_destroy_groups", arguments, tmp_path) == [[3.0] * 4] * 2


def use_torch_after_initialize(dist_init_required: bool | None) -> list[Any]:
    """The indices that a DistributedSampler gives this rank and a sum over the ranks; or that there is no default group."""
    import torch.distributed as dist

    import zeropage

    config = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    zeropage.initialize(model=torch.nn.Linear(2, 2), config=config, dist_init_required=dist_init_required)
    if not dist.is_initialized():
        return []
    value = torch.tensor(dist.get_rank() + 1.0)
    dist.all_reduce(value)
    return [list(torch.utils.data.DistributedSampler(range(4), shuffle=False)), value.item()]


def test_scripts_use_torchs_collectives_after_initialize(tmp_path: Path):
    """Catches CPU ranks whose DistributedSampler or all_reduce ends in "Default process group has not been initialized"."""
    for required, expected in ((None, [[[0, 2], 3.0], [[1, 3], 3.0]]), (False, [[], []])):
        arguments = json.dumps({"dist_init_required": required})
        assert run_processes(2, "test_process_groups", "use_torch_after_initialize", arguments, tmp_path) == expected


def end_with_an_error() -> None:
    import zeropage

    config = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    zeropage.initialize(model=torch.nn.Linear(2, 2), config=config)
    raise zeropage.errors.UsageError("what went wrong")


def test_errors_are_printed_beside_torchs_groups(tmp_path: Path):
    """Catches an error whose exit code is right and whose traceback torch's own hook has swallowed."""
    with pytest.raises(AssertionError) as failed:
        run_processes(2, "test_process_groups", "end_with_an_error", "{}", tmp_path)
    assert str(failed.value).count("UsageError: what went wrong") == 2
    assert "exit code 64" in str(failed.value)
