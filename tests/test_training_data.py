"""The loader of `training_data`: where it continues after a checkpoint, and which order ranks share."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import zeropage
from zeropage.testing import run_ranks

DATA = torch.utils.data.TensorDataset(torch.arange(40.0).reshape(40, 1))
CONFIG = {
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "SGD", "params": {"lr": 1e-4}},
    "zero_optimization": {"stage": 1},
}


def make_engine(base: nn.Module, **options: Any) -> tuple[Any, Any]:
    engine, _, loader, _ = zeropage.initialize(model=copy.deepcopy(base), config=CONFIG, training_data=DATA, **options)
    return engine, loader


def train(
    engine: Any, loader: Any, updates: int, drawn: list[float], save_in: str | None = None, save_after: int = 0
) -> None:
    """`updates` steps over as many epochs as that takes; adds the samples of this rank to `drawn`."""
    begun = engine.global_steps
    while engine.global_steps < begun + updates:
        for (batch,) in loader:
            drawn += batch.flatten().tolist()
            engine.backward(engine(batch).square().mean())
            engine.step()
            if save_in is not None and engine.global_steps == save_after:
                engine.save_checkpoint(save_in)
            if engine.global_steps == begun + updates:
                break


@pytest.mark.parametrize("save_after", [4, 10, 13])
def test_a_loaded_checkpoint_continues_in_the_data(save_after: int, tmp_path):
    """Catches samples that are repeated or skipped after a restart: in the middle of an epoch, at its end, in the
    second one."""
    base = nn.Linear(1, 1)

    def run(rank: int, communicator: Any) -> tuple[list[float], list[float]]:
        engine, loader = make_engine(base)
        undisturbed: list[float] = []
        train(engine, loader, 25, undisturbed, str(tmp_path), save_after)
        again, loader = make_engine(base)
        assert again.load_checkpoint(str(tmp_path))[0] is not None
        continued: list[float] = []
        train(again, loader, 25 - save_after, continued)
        return undisturbed, continued

    for undisturbed, continued in run_ranks(2, run):
        assert len(undisturbed) == 50 and continued == undisturbed[2 * save_after :]


def test_other_numbers_of_ranks_continue_with_what_is_left(tmp_path):
    """Catches a position that counts batches of one rank."""
    base = nn.Linear(1, 1)

    def save(rank: int, communicator: Any) -> list[float]:
        engine, loader = make_engine(base)
        drawn: list[float] = []
        train(engine, loader, 6, drawn, str(tmp_path), save_after=6)
        return drawn

    used: list[Any] = sum(run_ranks(2, save), [])
    engine, loader = make_engine(base)
    engine.load_checkpoint(str(tmp_path))
    left = torch.cat([batch for (batch,) in loader]).flatten().tolist()
    assert sorted(used + left) == DATA.tensors[0].flatten().tolist()


def test_a_rank_that_draws_alone_does_not_change_the_order_of_the_others():
    """Catches an order that counts how often this rank began to read: ranks would train on the same samples and miss
    others."""
    base = nn.Linear(1, 1)

    def run(rank: int, communicator: Any) -> list[float]:
        engine, loader = make_engine(base)
        if rank == 0:
            next(iter(loader))
            list(loader)
        drawn: list[float] = []
        train(engine, loader, 10, drawn)
        return drawn

    first, second = run_ranks(2, run)
    assert sorted(first + second) == DATA.tensors[0].flatten().tolist()


def test_a_data_set_with_its_own_order_is_reported(tmp_path, capfd):
    """Catches an iterable data set that silently starts from its beginning after a restart."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return (torch.ones(1) for _ in range(8))

    def make() -> tuple[Any, Any]:
        engine, _, loader, _ = zeropage.initialize(model=nn.Linear(1, 1), config=CONFIG, training_data=Stream())
        return engine, loader

    engine, loader = make()
    for batch in loader:
        engine.backward(engine(batch).square().mean())
        engine.step()
        break
    engine.save_checkpoint(str(tmp_path))
    make()[0].load_checkpoint(str(tmp_path))
    assert "position in the checkpoint cannot be restored" in capfd.readouterr().err
