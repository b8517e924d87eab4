"""Runs optimizers of PyTorch on the parts of parameters that this rank updates.

The program's optimizer object updates fp32 shards instead of the model's parameters: while one of its methods runs, its
groups contain this rank's shards, and afterwards the model's parameters again. The keys of its state are the shards
(shard_state.py). `step()` runs once per update. A shard is a flat part of a parameter if the optimizer is elementwise,
otherwise a whole parameter in its shape (optimizer_sees.py).

Its other methods may change weights, too (`eval()` and `train()` of schedulefree). They stay callable on the user's
object, which gets attributes for them:

  1. While the method runs, `group["params"]` looks like a list of shards.
  2. When the method first reads such a list, the shards are filled with copies of the masters.
  3. Afterwards all ranks replace the masters by the copies and publish the parameters. If the method failed on any
     rank, nothing changes on all ranks.

A method that does not read parameters costs nothing and may be called by one rank only.
"""

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import _C
from .assign_data import assign_data
from .errors import UsageError
from .muon import Muon
from .optimizer_sees import takes_whole
from .shard_state import Segment, ShardState

# (name, parameter, group or -1), as for the engine
NamedParameter = tuple[str, torch.Tensor, int]
# (parameter, values, gradient or None)
Part = tuple[int, torch.Tensor, torch.Tensor | None]
Values = dict[int, tuple[torch.Tensor, torch.Tensor | None]]  # parameter -> values, gradient


def configured(section: dict[str, Any], groups: list[dict[str, Any]], model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer, of torch.optim or Muon, that a configuration's section names."""
    if section["type"] == "Muon":
        return Muon.configured(section["params"], groups, model)
    return getattr(torch.optim, section["type"])(
        groups, **{key: value for key, value in section["params"].items() if value is not None}
    )


class _ShardList(list):
    """Shards that are filled when they are first read."""

    def __init__(self, shards: list[torch.nn.Parameter], fill: Callable[[], None]):
        super().__init__(shards)
        self._fill = fill

    def __iter__(self) -> Iterator[torch.nn.Parameter]:
        self._fill()
        return super().__iter__()

    def __getitem__(self, index: Any) -> Any:
        self._fill()
        return super().__getitem__(index)


class ShardUpdate:
    """Runs `client` on shards. Parameters are identified by their index in the engine."""

    def __init__(self, client: torch.optim.Optimizer):
        self.client = client
        self.communicator: Any = None  # _C.Communicator, from attach on
        self._takes_whole: Callable[[dict[str, Any]], bool] | None = None  # not known yet
        self._whole_names: set[str] = set()  # of parameters that the client gets whole
        self.whole: Any = None  # _C.WholeParameters, from attach on
        self._step = client.step  # a scheduler may have wrapped it
        self._config: Any = None  # _C.Config, from note_whole on
        self._drive: Any = None  # _C.TensorsOnDrive if state is on a drive, from attach on
        self._momenta_in_memory = False  # those of Muon, although other state is on a drive
        self._core: Callable[[], Any] = lambda: None
        self._filled: Values | None = None  # while a method of the client uses the shards
        self._parts: Values = {}  # then: what this rank updates of the parameters that the client sees whole
        self._groups_before: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.state: Any = None  # ShardState, from attach on

    def note_whole(self, parameters: list[NamedParameter], config: _C.Config, world_size: int) -> set[str]:
        """Call before the engine gets parameters. Returns the names of those that the client gets whole. Raises
        ConfigError when it cannot run here."""
        self._config = config
        if self._takes_whole is None:
            self._takes_whole = takes_whole(self.client, config, world_size)
        groups = [self._takes_whole(group) for group in self.client.param_groups]
        whole = {name for name, _, group in parameters if group >= 0 and groups[group]}
        self._whole_names |= whole
        return whole

    def attach(
        self,
        core: _C.Engine,
        communicator: _C.Communicator,
        parameters: list[NamedParameter],
        segments: list[tuple[int, int, int]],
    ) -> None:
        """Collective. parameters: those that the engine got. segments: (parameter, first element, elements) that this
        rank updates.

        Existing state of the client is taken over: this rank's elements of rank 0's state. Raises ConfigError when it
        cannot be cut.
        """
        self._core = weakref.ref(core)
        self.communicator = communicator
        self.whole = _C.WholeParameters(communicator, parameters[0][1].device)
        self._drive = _C.TensorsOnDrive.of(self._config, core, communicator.job.rank)
        self._momenta_in_memory = isinstance(self.client, (Muon, torch.optim.Muon)) and _C.keeps_momenta_in_memory(
            self._config
        )
        self.state = ShardState(
            self.client,
            [name for name, _, _ in parameters],
            self._segments(parameters, segments),
            self.whole,
            self._drive,
            ("momentum_buffer",) if self._momenta_in_memory else (),
        )
        if isinstance(self.client, Muon):
            state = weakref.ref(self.state)
            self.client.in_memory = lambda shard: state().in_memory(shard)  # type: ignore[union-attr]
        self.state.adopt([parameter for _, parameter, _ in parameters], communicator)
        self.state.move_to_drive()
        for name in _own_methods(type(self.client)):
            setattr(self.client, name, _method(weakref.ref(self), name))

    def formula_bytes(self, parameters: list[NamedParameter]) -> int:
        """Bytes of the client's state of all parameters in memory, on all ranks together; 0 if there is no formula."""
        kept = getattr(type(self.client), "kept_bytes", None)
        if kept is None:
            return 0

        def in_memory(group: dict[str, Any]) -> bool:
            return self._drive is None or (self._momenta_in_memory and group["use_muon"])

        groups = self.client.param_groups
        return sum(
            tensor.numel() * kept(groups[group])
            for _, tensor, group in parameters
            if group >= 0 and tensor.requires_grad and in_memory(groups[group])
        )

    def extend(self, parameters: list[NamedParameter], segments: list[tuple[int, int, int]]) -> None:
        """Call after parameters were added to the engine. Arguments as for `attach`, with all parameters."""
        self.state.extend(parameters, self._segments(parameters, segments))

    def _segments(self, parameters: list[NamedParameter], segments: list[tuple[int, int, int]]) -> list[Segment]:
        """The parts that the client updates on this rank. Collective when it gets whole parameters."""
        tensors = {
            index: tensor
            for index, (name, tensor, _) in enumerate(parameters)
            if name in self._whole_names and tensor.numel() > 0
        }
        if tensors:
            shapes = {index: _C.WholeShape.of(tensor) for index, tensor in tensors.items()}
            self.whole.add(shapes, {index: (offset, numel) for index, offset, numel in segments if index in tensors})
        parts = [Segment(*segment) for segment in segments if segment[0] not in tensors]
        return parts + [
            Segment(index, 0, self.whole.shape(index).numel(), self.whole.shape(index)) for index in self.whole.seen()
        ]

    def __call__(self, segments: list[Part]) -> None:
        """Runs one update of all parts of this rank."""
        self._groups_before = [(group, dict(group)) for group in self.state.groups()]
        self._fill(segments)
        failure = ""
        try:
            with torch.no_grad(), self._in_place_of_parameters(list):
                if not isinstance(self.client, Muon):  # which takes the state of one parameter at a time
                    self.state.take_from_drive()
                self._step()
                self.state.move_to_drive()
        except BaseException as error:
            failure = f"{type(error).__name__}: {error}"
            error.add_note("No parameter was changed on any rank, and the gradients of this update are discarded.")
            raise
        finally:
            self._copy_back(failure)

    def undo(self) -> None:
        """Call after an update that has failed on another rank: restores the groups. State that the client has changed
        stays changed."""
        for group, before in self._groups_before:
            group.clear()
            group.update(before)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls a method of the client other than step. Collective when it reads parameters."""
        method = getattr(type(self.client), name)
        if self._filled is not None:
            return method(self.client, *args, **kwargs)
        core = self._core()
        if core is None:
            raise UsageError(f"{name}() was called on the optimizer of an engine that has ended")

        def fill() -> None:
            if self._filled is None:
                self._fill(core.begin_edit())

        self.state.take_from_drive()
        try:
            with torch.no_grad(), self._in_place_of_parameters(lambda shards: _ShardList(shards, fill)):
                result = method(self.client, *args, **kwargs)
                self.state.move_to_drive()
        except BaseException as error:
            if self._filled is not None:
                failure = f"{type(error).__name__}: {error}"
                self._copy_back(failure)
                core.end_edit(failure)
            raise
        if self._filled is not None:
            self._copy_back("")
            core.end_edit("")
        return result

    def _fill(self, segments: list[Part]) -> None:
        """Collective when the client gets whole parameters."""
        self._parts = {index: (values, gradient) for index, values, gradient in segments if index in self.whole}
        self._filled = {index: (values, gradient) for index, values, gradient in segments if index not in self.whole}
        self._filled |= self.whole.gather(self._parts)
        for index, (values, gradient) in self._filled.items():
            shard = self.state.shard(index)
            assign_data(shard, values)
            shard.grad = gradient
            self.state.move_to(index, values.device)

    def _copy_back(self, failure: str) -> None:
        """Copies back the results, also of values that the client has assigned instead of changing them in place
        (`p.data = ...`). `failure`: that of this rank; after a failure nothing is copied. Collective when the client
        gets whole parameters; raises PeerError when it has failed on another rank."""
        whole = {}
        for index, (values, _) in (self._filled or {}).items():
            shard = self.state.shard(index)
            if index in self.whole:
                whole[index] = shard.detach()
            elif shard.data_ptr() != values.data_ptr():
                values.copy_(shard.detach().reshape(values.shape))
            shard.grad = None
            shard.data = torch.empty(0, device=shard.device)
        self._filled = None
        parts, self._parts = self._parts, {}
        if not self.whole.agree(failure):
            return
        self.whole.scatter(whole, parts)

    @contextmanager
    def _in_place_of_parameters(
        self, listed: Callable[[list[torch.nn.Parameter]], list[torch.nn.Parameter]]
    ) -> Iterator[None]:
        groups = self.state.groups()
        whole = [group["params"] for group in groups]
        for group, parameters in zip(groups, whole, strict=True):
            group["params"] = listed(self.state.shards_of(parameters))
        try:
            yield
        finally:
            for group, parameters in zip(groups, whole, strict=True):
                group["params"] = parameters


def _own_methods(kind: type) -> list[str]:
    """Public methods that torch.optim.Optimizer does not have."""
    names = [name for name in dir(kind) if not name.startswith("_") and not hasattr(torch.optim.Optimizer, name)]
    return [name for name in names if inspect.isfunction(inspect.getattr_static(kind, name))]


def _method(update: Callable[[], ShardUpdate | None], name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        alive = update()
        if alive is None:
            raise UsageError(f"{name}() was called on the optimizer of an engine that has ended")
        return alive.call(name, args, kwargs)

    return call
