"""Optimizers of PyTorch on what this rank owns of the parameters.

The program's optimizer object updates flat fp32 shards in the place of the model's parameters: while one of its methods runs, its groups hold
this rank's shards, and the model's parameters again afterwards. Its state is keyed by the shards (shard_state.py). `step()` runs once per
update. That is exact for optimizers that treat every element alike.

Its other methods may change weights, too (`eval()` and `train()` of schedulefree). They stay callable on the user's object, which gets
attributes for them:

  1. While the method runs, `group["params"]` looks like a list of shards.
  2. The first time that somebody looks into such a list, the shards are filled with copies of the masters.
  3. Afterwards all ranks put the copies in the place of the masters and publish the parameters. If the method failed on some rank nothing
     changes anywhere.

A method that looks at no parameters costs nothing and may be called by one rank alone.
"""

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import _C
from .errors import ConfigError, UsageError
from .shard_state import Segment, ShardState

# Those that torch documents as working element by element.
ELEMENTWISE = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
# Those that look at whole parameters, whichever library they are from: factored or preconditioned moments, norms of a parameter.
_WHOLE_PARAMETERS = ("Adafactor", "AdaFactor", "AdafactorBigVision", "CAME", "LBFGS", "Muon", "AdaMuon", "SparseAdam", "Lamb", "LAMB", "Lars", "LARS")
_WHOLE_PARAMETERS += ("Shampoo", "ScalableShampoo", "SOAP", "Kron", "SM3", "GaLoreAdamW", "GaLoreAdafactor", "Lomo", "AdaLomo")

# (parameter, values, gradient or None)
Values = tuple[int, torch.Tensor, torch.Tensor | None]


def check_elementwise(optimizer: torch.optim.Optimizer, allow_untested: bool) -> None:
    """Raises ConfigError for an optimizer that cannot run on shards, or of which nobody has said that it can."""
    kind = type(optimizer)
    name = f"{kind.__module__}.{kind.__qualname__}"
    known = {getattr(torch.optim, each) for each in ELEMENTWISE}
    if any(base.__name__ in _WHOLE_PARAMETERS for base in kind.__mro__):
        raise ConfigError(f"the optimizer {name} looks at whole parameters, and ranks update parts of them: use one that is elementwise")
    if kind not in known and not allow_untested:
        raise ConfigError(
            f"the optimizer is a {name}, of which it is not known that it treats every element alike; if it does, write "
            '"zero_allow_untested_optimizer": true in the config'
        )


def configured(section: dict[str, Any], groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of torch.optim that a configuration's section names."""
    return getattr(torch.optim, section["type"])(groups, **{key: value for key, value in section["params"].items() if value is not None})


class _ShardList(list):
    """Shards that are filled when somebody looks at them."""

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
    """Runs `client` on shards. Parameters are called by their index in the engine."""

    def __init__(self, client: torch.optim.Optimizer):
        self.client = client
        self._step = client.step  # a scheduler may have wrapped it
        self._absent = torch.empty(0, dtype=torch.float32)
        self._core: Callable[[], Any] = lambda: None
        self._filled: dict[int, Values] | None = None  # while a method of the client's works on the shards
        self._groups_before: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.state: ShardState | None = None

    def attach(
        self,
        core: _C.Engine,
        communicator: _C.Communicator,
        parameters: list[tuple[str, torch.Tensor, int]],
        segments: list[tuple[int, int, int]],
    ) -> None:
        """Collective. parameters: as the engine was given them. segments: (parameter, first element, elements) that this rank updates.

        State that the client has is taken over: rank 0's, this rank's elements of it. Raises ConfigError when it cannot be cut.
        """
        self._core = weakref.ref(core)
        self.state = ShardState(self.client, [name for name, _, _ in parameters], [Segment(*segment) for segment in segments])
        self.state.adopt([parameter for _, parameter, _ in parameters], communicator)
        for name in _own_methods(type(self.client)):
            setattr(self.client, name, _method(weakref.ref(self), name))

    def __call__(self, segments: list[Values]) -> None:
        """One update of all that this rank has."""
        self._groups_before = [(group, dict(group)) for group in self.state.groups()]
        self._fill(segments)
        try:
            with torch.no_grad(), self._in_place_of_parameters(list):
                self._step()
        except BaseException as error:
            error.add_note("No parameter was changed on any rank, and the gradients of this update are forgotten.")
            raise
        finally:
            self._take_back()

    def undo(self) -> None:
        """After an update that some rank has not ended: the groups are as before it. State that the client has changed stays so."""
        for group, before in self._groups_before:
            group.clear()
            group.update(before)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A method of the client's other than step. Collective when it looks at parameters."""
        method = getattr(type(self.client), name)
        if self._filled is not None:
            return method(self.client, *args, **kwargs)
        core = self._core()
        if core is None:
            raise UsageError(f"{name}() was called on the optimizer of an engine that has ended")

        def fill() -> None:
            if self._filled is None:
                self._fill(core.begin_edit())

        try:
            with torch.no_grad(), self._in_place_of_parameters(lambda shards: _ShardList(shards, fill)):
                result = method(self.client, *args, **kwargs)
        except BaseException as error:
            if self._filled is not None:
                self._take_back()
                core.end_edit(f"{type(error).__name__}: {error}")
            raise
        if self._filled is not None:
            self._take_back()
            core.end_edit("")
        return result

    def _fill(self, segments: list[Values]) -> None:
        self._filled = {index: (index, values, gradient) for index, values, gradient in segments}
        for index, values, gradient in segments:
            shard = self.state.shard(index)
            shard.data, shard.grad = values, gradient
            self.state.move_to(index, values.device)

    def _take_back(self) -> None:
        """What the client has assigned instead of changing it in place (`p.data = ...`) goes to its place, too."""
        for index, values, _ in self._filled.values():
            shard = self.state.shard(index)
            if shard.data_ptr() != values.data_ptr():
                values.copy_(shard.detach().reshape(values.shape))
            shard.grad = None
            shard.data = self._absent
        self._filled = None

    @contextmanager
    def _in_place_of_parameters(self, listed: Callable[[list[torch.nn.Parameter]], list[torch.nn.Parameter]]) -> Iterator[None]:
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
    """Methods that users call and that torch.optim.Optimizer does not have."""
    names = [name for name in dir(kind) if not name.startswith("_") and not hasattr(torch.optim.Optimizer, name)]
    return [name for name in names if inspect.isfunction(inspect.getattr_static(kind, name))]


def _method(update: Callable[[], ShardUpdate | None], name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        alive = update()
        if alive is None:
            raise UsageError(f"{name}() was called on the optimizer of an engine that has ended")
        return alive.call(name, args, kwargs)

    return call
