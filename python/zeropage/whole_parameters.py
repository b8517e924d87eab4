"""Parameters that the program's optimizer sees whole, where ranks update parts of them: each has an owner, and travels
to it within an update.

  1. When parameters are added ranks tell each other which parts they update. A parameter of which one rank has
     everything is that rank's; the others go, the largest first, to the rank that owns least.
  2. `gather` gives the owner fp32 values and gradient of the whole parameter, in its shape.
  3. The optimizer changes the owner's copies. `agree`: ranks tell each other whether that went well.
  4. `scatter` puts the results into the parts.

Cost per update: each rank receives 12 bytes per element of the parameters that lie on several ranks, and the owner
holds 8 bytes per element of those that it owns while the optimizer runs. Where every rank has all parameters, as at
stage 0, nothing travels, and owners only say who saves their state.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from . import _C
from .errors import PeerError

_CHUNK_NUMEL = 1 << 22  # of parameters that travel together

# What a rank says of a parameter in an update.
_ABSENT, _WITHOUT_GRADIENT, _WITH_GRADIENT = 0, 1, 2


@dataclass(frozen=True)
class Shape:
    """How all elements of a parameter, as they lie in memory, are a tensor of its shape."""

    extents: tuple[int, ...]
    order: tuple[int, ...]  # its dimensions as they lie in memory

    def numel(self) -> int:
        return math.prod(self.extents)

    @staticmethod
    def of(parameter: torch.Tensor) -> "Shape":
        return Shape(
            tuple(parameter.shape), tuple(sorted(range(parameter.dim()), key=lambda dim: -parameter.stride(dim)))
        )

    def flat(self, value: torch.Tensor) -> torch.Tensor:
        """A view where `value` lies in memory as the parameter does."""
        return value.permute(self.order).reshape(-1)

    def shaped(self, flat: torch.Tensor) -> torch.Tensor:
        """The other way; a view."""
        laid_out = flat.view([self.extents[dim] for dim in self.order])
        return laid_out.permute(sorted(range(len(self.order)), key=self.order.__getitem__))


@dataclass
class _Placed:
    """A parameter, and which rank updates which of its elements."""

    shape: Shape
    parts: dict[int, tuple[int, int]]  # rank -> first element, elements
    owner: int
    travels: bool

    def from_owner(self) -> dict[int, tuple[int, int]]:
        """As `parts`, when the owner has all elements."""
        return {self.owner: (0, self.shape.numel())}


Values = dict[int, tuple[torch.Tensor, torch.Tensor | None]]  # parameter -> values, gradient


class WholeParameters:
    def __init__(self, core: Callable[[], Any], communicator: _C.Communicator, device: torch.device):
        """core: a weak reference to the engine's C++ side. device: the engine's, through whose memory parts travel."""
        self._core = core
        self._communicator = communicator
        self._device = device
        self._rank = communicator.rank
        self._placed: dict[int, _Placed] = {}

    def add(self, shapes: dict[int, Shape], mine: dict[int, tuple[int, int]]) -> None:
        """Collective. shapes: of the parameters that the optimizer sees whole, by index; those that are known already
        stay with their owner.
        mine: (first element, elements) of each that this rank updates."""
        new = {index: shape for index, shape in shapes.items() if index not in self._placed}
        lines = [f"{index} {mine[index][0]} {mine[index][1]}" for index in new if index in mine]
        parts: dict[int, dict[int, tuple[int, int]]] = {index: {} for index in new}
        for rank, text in enumerate(self._core().exchange_texts("\n".join(lines))):
            for index, offset, numel in (map(int, line.split()) for line in text.splitlines()):
                parts[index][rank] = (offset, numel)
        owned = [0] * self._communicator.size
        for placed in self._placed.values():
            owned[placed.owner] += placed.shape.numel()
        for index in sorted(new, key=lambda index: (len(parts[index]) > 1, -new[index].numel(), index)):
            shape, ranks = new[index], parts[index]
            owner = next(iter(ranks)) if len(ranks) == 1 else owned.index(min(owned))
            owned[owner] += shape.numel()
            travels = any(part != (0, shape.numel()) for part in ranks.values())
            self._placed[index] = _Placed(shape, ranks, owner, travels)

    def __contains__(self, index: int) -> bool:
        return index in self._placed

    def __bool__(self) -> bool:
        return bool(self._placed)

    def shape(self, index: int) -> Shape:
        return self._placed[index].shape

    def owner(self, index: int) -> int:
        """The rank that updates the parameter, or saves its state when all of them update it."""
        return self._placed[index].owner

    def seen(self) -> list[int]:
        """Parameters that the optimizer of this rank updates."""
        return [
            index
            for index, placed in self._placed.items()
            if (placed.owner == self._rank if placed.travels else self._rank in placed.parts)
        ]

    def gather(self, mine: Values) -> Values:
        """mine: flat parts of this rank. Returns what its optimizer updates, whole and in shape. Collective."""
        whole: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
        for index, (values, gradient) in mine.items():
            if not self._placed[index].travels:
                whole[index] = (values, gradient)
        said = self._say(mine)
        for index in self._travelling(said, _WITHOUT_GRADIENT):
            if self.owner(index) == self._rank:
                device = mine[index][0].device if index in mine else self._device
                with_gradient = said[index] == _WITH_GRADIENT
                numel = self.shape(index).numel()
                whole[index] = (
                    torch.empty(numel, device=device),
                    torch.empty(numel, device=device) if with_gradient else None,
                )
        for which, least in ((0, _WITHOUT_GRADIENT), (1, _WITH_GRADIENT)):
            for chunk in self._chunks(self._travelling(said, least)):
                for index, (offset, numel), piece in self._exchanged(
                    chunk, lambda placed: placed.parts, lambda index: mine[index][which]
                ):
                    if self.owner(index) == self._rank:
                        whole[index][which][offset : offset + numel] = piece
        return {
            index: tuple(each if each is None else self.shape(index).shaped(each) for each in pair)
            for index, pair in whole.items()
        }

    def scatter(self, whole: dict[int, torch.Tensor], mine: Values) -> None:
        """whole: what the optimizer of this rank has made of `gather`'s values, which it may have replaced.
        Collective."""
        for index, values in whole.items():
            flat = self.shape(index).flat(values.detach())
            if self._placed[index].travels:
                whole[index] = flat.float()
            elif flat.data_ptr() != mine[index][0].data_ptr():
                mine[index][0].copy_(flat)
        for chunk in self._chunks(self._travelling(self._say(mine), _WITHOUT_GRADIENT)):
            for index, _, piece in self._exchanged(chunk, _Placed.from_owner, whole.__getitem__):
                if index in mine:
                    offset, numel = self._placed[index].parts[self._rank]
                    mine[index][0].copy_(piece[offset : offset + numel])

    def from_owner(self, index: int, mine: torch.Tensor | None) -> torch.Tensor | None:
        """The owner's tensor of the parameter's shape, new, in fp32; None when it has none. Collective."""
        if not self._placed[index].travels:
            return None if mine is None else mine.detach().float().clone()
        if not any(self._core().exchange_texts("" if mine is None else "there")):
            return None
        received = torch.empty(self.shape(index).extents, device=self._device)
        if mine is not None:
            received.copy_(mine.detach())
        self._communicator.broadcast(received, self.owner(index))
        return received

    def agree(self, failure: str) -> bool:
        """Whether all went well, on all ranks. Collective. failure: of this rank; empty: there was none. Raises
        PeerError where there was one on another rank, and none on this one."""
        if not any(placed.travels for placed in self._placed.values()):
            return not failure
        failures = [
            f"\n  rank {rank}: {text}" for rank, text in enumerate(self._core().exchange_texts(failure)) if text
        ]
        if failures and not failure:
            raise PeerError("the optimizer's step failed, so that no rank has applied it:" + "".join(failures))
        return not failures

    def _say(self, mine: Values) -> dict[int, int]:
        """What of each parameter is there on any rank: a rank that has no elements of it does not know."""
        said = bytes(
            _ABSENT if i not in mine else _WITHOUT_GRADIENT if mine[i][1] is None else _WITH_GRADIENT
            for i in self._placed
        )
        if not any(placed.travels for placed in self._placed.values()):
            return dict(zip(self._placed, said, strict=True))
        every = self._communicator.all_gather_small(said)
        return {i: max(every[position :: len(said)]) for position, i in enumerate(self._placed)}

    def _travelling(self, said: dict[int, int], least: int) -> list[int]:
        return [index for index, placed in self._placed.items() if placed.travels and said[index] >= least]

    def _chunks(self, indices: list[int]) -> Iterator[list[int]]:
        chunk: list[int] = []
        for index in indices:
            if chunk and sum(self.shape(each).numel() for each in (*chunk, index)) > _CHUNK_NUMEL:
                yield chunk
                chunk = []
            chunk.append(index)
        if chunk:
            yield chunk

    def _exchanged(
        self,
        chunk: list[int],
        parts_of: Callable[[_Placed], dict[int, tuple[int, int]]],
        own: Callable[[int], torch.Tensor],
    ) -> Iterator[tuple[int, tuple[int, int], torch.Tensor]]:
        """(parameter, its elements, values) of what every rank has of the parameters of a chunk. Memory: what one rank
        has. Collective."""
        for rank in range(self._communicator.size):
            pieces = [
                (index, parts_of(self._placed[index])[rank]) for index in chunk if rank in parts_of(self._placed[index])
            ]
            if not pieces:
                continue
            if rank == self._rank:
                buffer = torch.cat([own(index).reshape(-1).to(self._device) for index, _ in pieces])
            else:
                buffer = torch.empty(sum(numel for _, (_, numel) in pieces), device=self._device)
            self._communicator.broadcast(buffer, rank)
            for (index, part), piece in zip(pieces, buffer.split([numel for _, (_, numel) in pieces]), strict=True):
                yield index, part, piece
