"""The data loader that `initialize(training_data=...)` returns: each rank gets its own part of the data."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from .distributed import World


class RankSampler(Sampler[int]):
    """A random order of the whole data set, the same on all ranks. Each rank takes every size-th index of it.

    Each iteration is a new epoch with a new order. All ranks get the same number of indices: with `drop_last` the
    remainder is left out, otherwise the first indices are repeated (at most size - 1).
    """

    def __init__(self, length: int, world: World, drop_last: bool, shuffle: bool = True, seed: int = 0):
        self.world_size = world.size
        self._length = length
        self._rank = world.rank
        self._shuffle = shuffle
        self._seed = seed
        self._per_rank = length // world.size if drop_last else -(-length // world.size)
        self._epoch = -1
        self._chosen: int | None = None
        self._first = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self._chosen = epoch

    def begin(self, epoch: int, first: int) -> int:
        """Sets the epoch of the next iteration (unless `set_epoch` has set it), which starts at entry `first` of the
        order. Returns the epoch."""
        self._chosen = epoch if self._chosen is None else self._chosen
        self._first = first
        return self._chosen

    def __len__(self) -> int:
        return self._per_rank

    def __iter__(self) -> Iterator[int]:
        self._epoch = self._epoch + 1 if self._chosen is None else self._chosen
        first, self._first, self._chosen = self._first, 0, None
        if self._shuffle:
            generator = torch.Generator().manual_seed(self._seed + self._epoch)
            order = torch.randperm(self._length, generator=generator).tolist()
        else:
            order = list(range(self._length))
        total = self._per_rank * self.world_size
        order = (order * -(-total // max(1, self._length)))[:total]
        return iter(order[first + self._rank :: self.world_size])


@dataclass(frozen=True)
class Position:
    """The position in the data: an epoch, and the number of entries of its order that all ranks have drawn together."""

    epoch: int
    entries: int


class TrainingLoader(DataLoader):
    """The loader that `initialize(training_data=...)` returns. A checkpoint keeps its position, and a loaded one
    continues there.

    The order of an epoch depends on the micro steps that the engine had made when the epoch began. So a rank that draws
    a batch by itself does not change the order that it shares with the others.
    """

    def __init__(self, progress: Callable[[], int], *args: Any, **options: Any):
        """progress: the engine's micro steps. The sampler, if any, is a RankSampler."""
        super().__init__(*args, **options)
        self._progress = progress
        self._resume: Position | None = None
        self.position: Position | None = None  # None: between two epochs, or not known

    def continue_at(self, position: Position | None) -> bool:
        """Continues there in the next iteration. Returns False when the data set has its own order, which cannot be
        continued."""
        if position is None:
            return True
        self._resume = position
        return isinstance(self.sampler, RankSampler)

    def __iter__(self) -> Iterator[Any]:
        start = self._resume or Position(self._progress(), 0)
        self._resume = None
        own_order = isinstance(self.sampler, RankSampler)
        epoch = self.sampler.begin(start.epoch, start.entries) if own_order else start.epoch
        drawn = start.entries if own_order and epoch == start.epoch else 0
        for batch in super().__iter__():
            drawn += self.batch_size * (self.sampler.world_size if own_order else 1)
            self.position = Position(epoch, drawn)
            yield batch
        self.position = None


def make_dataloader(
    dataset: Dataset,
    batch_size: int,
    world: World,
    drop_last: bool,
    *,
    train: bool = True,
    sampler: Sampler | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
    progress: Callable[[], int] | None = None,
) -> DataLoader:
    """A loader of micro batches of this rank's part. An iterable data set is used unchanged: it must shard itself.

    progress: the engine's micro steps, for a TrainingLoader.
    """
    if sampler is None and not isinstance(dataset, IterableDataset):
        sampler = RankSampler(len(dataset), world, drop_last, shuffle=train)
    make = DataLoader if progress is None else partial(TrainingLoader, progress)
    return make(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=collate_fn,
        drop_last=drop_last,
        num_workers=num_workers,
        pin_memory=pin_memory and torch.accelerator.is_available(),
    )
