"""Splits lists of weights and tensors into parts, with the names of `deepspeed.runtime.utils`."""

from typing import Any

import torch
import torch.distributed as dist

from ..errors import UsageError


def prefix_sum_inc(weights: list[float]) -> list[float]:
    """[w0, w0 + w1, ...]"""
    sums: list[float] = []
    total: float = 0
    for weight in weights:
        total += weight
        sums.append(total)
    return sums


def partition_uniform(num_items: int, num_parts: int) -> list[int]:
    """num_parts + 1 bounds: part i is items [bound i, bound i+1). Sizes differ by at most one; the first parts are the
    larger ones."""
    _check_parts(num_parts)
    small, larger = divmod(num_items, num_parts)
    return [part * small + min(part, larger) for part in range(num_parts + 1)]


def partition_balanced(weights: list[float], num_parts: int) -> list[int]:
    """As `partition_uniform`, for items of these weights: no other split has a lighter heaviest part. Exact: dynamic
    programming over the items, num_parts * items^2 operations."""
    _check_parts(num_parts)
    count = len(weights)
    sums = [0, *prefix_sum_inc(list(weights))]
    heaviest = sums  # heaviest[end]: of the first `end` items in the parts so far
    begins = []
    for _ in range(num_parts - 1):
        choices = [
            min((max(heaviest[begin], sums[end] - sums[begin]), begin) for begin in range(end + 1))
            for end in range(count + 1)
        ]
        heaviest = [weight for weight, _ in choices]
        begins.append([begin for _, begin in choices])
    bounds = [count]
    for of_part in reversed(begins):
        bounds.append(of_part[bounds[-1]])
    return [0, *reversed(bounds)]


def _check_parts(num_parts: int) -> None:
    if num_parts < 1:
        raise UsageError(f"expected at least one part, got {num_parts}")


class PartitionedTensor:
    """A tensor in even, flat parts: each rank of a group keeps one. Making it and `full` are collective."""

    def __init__(self, tensor: torch.Tensor, group: Any, partition_meta: Any = None):
        """partition_meta: accepted for compatibility; parts are even."""
        self.group = group
        self.orig_size = list(tensor.shape)
        self.orig_device = tensor.device
        world, rank = dist.get_world_size(group), dist.get_rank(group)
        bounds = partition_uniform(tensor.numel(), world)
        self._sizes = [end - begin for begin, end in zip(bounds, bounds[1:], strict=False)]
        self.local_data = tensor.detach().flatten()[bounds[rank] : bounds[rank + 1]].clone()

    def local_size(self) -> torch.Size:
        return self.local_data.size()

    def data(self) -> torch.Tensor:
        return self.local_data

    def full(self, device: torch.device | str | None = None) -> torch.Tensor:
        """The whole tensor, in its shape."""
        padded = self.local_data.new_zeros(max(self._sizes))
        padded[: self.local_data.numel()] = self.local_data
        parts = [torch.empty_like(padded) for _ in self._sizes]
        dist.all_gather(parts, padded, group=self.group)
        whole = torch.cat([part[:size] for part, size in zip(parts, self._sizes, strict=True)])
        return whole.view(self.orig_size).to(device or self.orig_device)

    def full_size(self) -> list[int]:
        return self.orig_size
