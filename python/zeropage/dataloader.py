"""The data loader that `initialize(training_data=...)` returns: each rank gets its own part of the data."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from .distributed import World


class RankSampler(Sampler[int]):
    """A random order of the whole data set, the same on all ranks, of which each rank takes every size-th index.

    Each iteration is a new epoch with a new order. All ranks get the same number of indices: what does not divide is left
    out when `drop_last`, else the order's beginning is repeated (at most size - 1 indices).
    """

    def __init__(self, length: int, world: World, drop_last: bool, shuffle: bool = True, seed: int = 0):
        self._length = length
        self._world = world
        self._shuffle = shuffle
        self._seed = seed
        self._per_rank = length // world.size if drop_last else -(-length // world.size)
        self._epoch = -1

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is this epoch."""
        self._epoch = epoch - 1

    def __len__(self) -> int:
        return self._per_rank

    def __iter__(self) -> Iterator[int]:
        self._epoch += 1
        if self._shuffle:
            generator = torch.Generator().manual_seed(self._seed + self._epoch)
            order = torch.randperm(self._length, generator=generator).tolist()
        else:
            order = list(range(self._length))
        total = self._per_rank * self._world.size
        order = (order * -(-total // max(1, self._length)))[:total]
        return iter(order[self._world.rank :: self._world.size])


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
) -> DataLoader:
    """A loader of micro batches of this rank's part. An iterable data set is taken as it is: it shards itself."""
    if sampler is None and not isinstance(dataset, IterableDataset):
        sampler = RankSampler(len(dataset), world, drop_last, shuffle=train)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=collate_fn,
        drop_last=drop_last,
        num_workers=num_workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
    )
