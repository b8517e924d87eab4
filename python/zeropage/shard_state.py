"""The state that an optimizer of PyTorch keeps of this rank's shards: taken over from the user's object, counted, saved and loaded.

An optimizer may wrap others (Lookahead): theirs is state, too, under the name of the attribute that holds them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from . import _C
from .errors import CheckpointError, ConfigError, UsageError

State = dict[str, Any]

# How a state is called in a checkpoint, before its name: by the element, one tensor per parameter, one number per parameter.
_ELEMENTS, _SCALAR, _NUMBER = "torch", "torch_scalar", "torch_number"


@dataclass(frozen=True)
class Segment:
    """What this rank updates of a parameter: elements [offset, offset + numel) as they lie in memory."""

    parameter: int
    offset: int
    numel: int


class ShardState:
    def __init__(self, client: torch.optim.Optimizer, names: list[str], segments: list[Segment]):
        """names: of the engine's parameters."""
        self._client = client
        self._optimizers = dict(_wrapped(client, ""))
        self._names = names
        self._segments = {segment.parameter: segment for segment in segments}
        self._shards = {index: torch.nn.Parameter(torch.empty(0, dtype=torch.float32)) for index in self._segments}
        self._index_of: dict[int, int] = {}
        self._to_move: set[int] = set()

    def extend(self, parameters: list[tuple[str, torch.Tensor, int]], segments: list[tuple[int, int, int]]) -> None:
        """The engine has got more parameters. Both lists are of all of them, as for the first ones."""
        self._names = [name for name, _, _ in parameters]
        self._index_of = {id(parameter): index for index, (_, parameter, _) in enumerate(parameters)}
        for segment in (Segment(*each) for each in segments):
            self._segments[segment.parameter] = segment
            self._shards.setdefault(segment.parameter, torch.nn.Parameter(torch.empty(0, dtype=torch.float32)))

    def groups(self) -> list[dict[str, Any]]:
        """Of the client and of what it wraps, each once."""
        return list({id(group): group for optimizer in self._optimizers.values() for group in optimizer.param_groups}.values())

    def shard(self, index: int) -> torch.nn.Parameter:
        return self._shards[index]

    def shards_of(self, parameters: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
        """Of those parameters of which this rank updates something."""
        indices = (self._index_of.get(id(parameter)) for parameter in parameters)
        return [self._shards[index] for index in indices if index in self._shards]

    def move_to(self, index: int, device: torch.device) -> None:
        """Once, state that was taken over goes to the memory in which the shard is updated."""
        if index not in self._to_move:
            return
        self._to_move.remove(index)
        for optimizer in self._optimizers.values():
            state = optimizer.state.get(self._shards[index], {})
            state.update({key: value.to(device) for key, value in state.items() if isinstance(value, torch.Tensor) and value.dim() > 0})

    def adopt(self, parameters: list[torch.Tensor], communicator: _C.Communicator) -> None:
        """State keyed by the model's parameters becomes state of this rank's shards: rank 0's values. Collective when there is any.

        Raises ConfigError for tensors of which no part belongs to the shard.
        """
        self._index_of = {id(parameter): index for index, parameter in enumerate(parameters)}
        for optimizer in self._optimizers.values():
            for key in [key for key in optimizer.state if isinstance(key, torch.Tensor)]:
                index, state = self._index_of.get(id(key)), optimizer.state.pop(key)
                cut = {name: self._cut(index, key, name, value, communicator) for name, value in state.items()}
                if index in self._shards:
                    optimizer.state[self._shards[index]] = cut
                    self._to_move.add(index)

    def _cut(self, index: int, parameter: torch.Tensor, name: str, value: Any, communicator: _C.Communicator) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        whole = value.detach().to(torch.float32 if value.is_floating_point() else value.dtype)
        if value.shape == parameter.shape:
            order = sorted(range(parameter.dim()), key=lambda dim: -parameter.stride(dim))
            whole = whole.permute(order)
        elif value.numel() != 1:
            raise ConfigError(
                f"state '{name}' that the optimizer has of parameter '{self._names[index]}' has the shape {list(value.shape)}, the parameter "
                f"{list(parameter.shape)}: ranks update parts of parameters, and no part of this state belongs to a part; use an optimizer that "
                "is elementwise"
            )
        whole = whole.contiguous().clone()
        communicator.broadcast(whole, 0)
        segment = self._segments.get(index)
        if value.shape != parameter.shape or segment is None:
            return whole
        return whole.flatten()[segment.offset : segment.offset + segment.numel].clone()

    def local(self, parameter: torch.Tensor, name: str) -> torch.Tensor | None:
        """The optimizer's own tensor of a state by the element; None: there is none (yet), or this rank has no elements."""
        shard = self._shards.get(self._index_of.get(id(parameter), -1))
        owner = self._owner(name)
        value = None if shard is None else self._optimizers[owner].state.get(shard, {}).get(name.removeprefix(owner))
        return value if isinstance(value, torch.Tensor) and value.dim() > 0 else None

    def bytes_on(self, device: torch.device) -> tuple[int, int]:
        """Bytes of the state's tensors in the memory of the device, and elsewhere, which is the host."""
        bytes_of = [0, 0]
        for _, _, _, value in self._entries():
            if isinstance(value, torch.Tensor):
                bytes_of[value.device.type != device.type] += value.nbytes
        return bytes_of[0], bytes_of[1]

    def _entries(self) -> Iterator[tuple[int, str, str, Any]]:
        """(parameter, prefix of the optimizer's name, key, value)"""
        for index, shard in self._shards.items():
            for prefix, optimizer in self._optimizers.items():
                for key, value in optimizer.state.get(shard, {}).items():
                    yield index, prefix, key, value

    # -- for state dicts of whole tensors

    def index_of(self, parameter: torch.Tensor) -> int:
        return self._index_of[id(parameter)]

    def describe(self) -> dict[int, dict[str, dict[str, Any]]]:
        """Parameter -> key -> the type of its elements, or its value. Raises UsageError for what is neither by the element nor a number."""
        found: dict[int, dict[str, dict[str, Any]]] = {}
        for index, prefix, key, value in self._entries():
            tensor = isinstance(value, torch.Tensor)
            form: dict[str, Any] = {"dtype": str(value.dtype).removeprefix("torch.")} if tensor else {}
            if not (tensor and value.dim() > 0 and value.numel() == self._segments[index].numel):
                if not isinstance(value, (bool, int, float, type(None))) and not (tensor and value.numel() == 1):
                    raise UsageError(
                        f"state '{key}' of parameter '{self._names[index]}' is neither by the element nor a number ({_describe(value)}): a "
                        "state dict cannot have it"
                    )
                form["value"] = value.item() if tensor else value
            found.setdefault(index, {})[prefix + key] = form
        return found

    def put(self, parameter: torch.Tensor, state: State) -> None:
        """Replaces the state of one parameter by this rank's elements. Tensors that are there stay the same objects."""
        index = self.index_of(parameter)
        for key, value in state.items():
            present = self.local(parameter, key)
            if isinstance(value, torch.Tensor) and present is not None and present.shape == value.shape:
                state[key] = present.detach().copy_(value)
        self._put(index, state)
        self._to_move.add(index)

    def replace(self, states: dict[int, State]) -> None:
        """`states`: by parameter, this rank's elements; keys with the prefix of the optimizer they belong to."""
        for index in self._shards:
            self._put(index, states.get(index, {}))

    def _put(self, index: int, state: State) -> None:
        if (shard := self._shards.get(index)) is None:
            return
        for prefix, optimizer in self._optimizers.items():
            optimizer.state.pop(shard, None)
            if own := {key.removeprefix(prefix): value for key, value in state.items() if self._owner(key) == prefix}:
                optimizer.state[shard] = own

    def _owner(self, key: str) -> str:
        """The longest prefix that the key has."""
        return max((prefix for prefix in self._optimizers if key.startswith(prefix)), key=len)

    # -- in a checkpoint

    def values_of_no_parameter(self) -> dict[str, State]:
        """What optimizers keep under other keys than parameters (counts), by the prefix of the optimizer."""
        return {
            prefix: {key: value for key, value in optimizer.state.items() if not isinstance(key, torch.Tensor)}
            for prefix, optimizer in self._optimizers.items()
        }

    def replace_values_of_no_parameter(self, values: dict[str, State] | None) -> None:
        for prefix, loaded in (values or {}).items():
            if prefix in self._optimizers:
                self._optimizers[prefix].state.update(loaded)

    def tensors_to_save(self) -> list[tuple[str, int, int, torch.Tensor]]:
        """(kind, parameter, first element, values); values without dimensions belong to the parameter as a whole.

        Raises CheckpointError for a state that is neither by the element nor a number.
        """
        tensors = []
        for index, prefix, key, value in self._entries():
            if value is None:
                continue
            segment = self._segments[index]
            by_element = isinstance(value, torch.Tensor) and value.dim() > 0 and value.numel() == segment.numel
            if not isinstance(value, (torch.Tensor, bool, int, float)) or not (by_element or _as_tensor(value).numel() == 1):
                raise CheckpointError(
                    f"state '{key}' that {type(self._client).__name__} keeps of parameter '{self._names[index]}' is neither by the element "
                    f"({segment.numel} here) nor a number: checkpoints cannot hold {_describe(value)}"
                )
            kind = _NUMBER if not isinstance(value, torch.Tensor) else _ELEMENTS if by_element else _SCALAR
            tensor = _as_tensor(value)
            tensors.append((f"{kind}.{prefix}{key}", index, segment.offset, tensor.flatten() if by_element else tensor.reshape(())))
        return tensors

    def read(self, step: _C.Checkpoint) -> dict[int, State]:
        """What a checkpoint has for this rank's elements. Raises CheckpointError, IoError."""
        owned = {self._names[index]: segment for index, segment in self._segments.items()}
        states: dict[int, State] = {}
        for tensor in step.tensor_names():
            kind, _, name = tensor.partition("/")
            form, _, key = kind.partition(".")
            if form not in (_ELEMENTS, _SCALAR, _NUMBER) or name not in owned:
                continue
            segment = owned[name]
            whole = form != _ELEMENTS
            value = step.read_range(tensor, 0 if whole else segment.offset, 1 if whole else segment.numel)
            value = value.item() if form == _NUMBER else value.reshape(()) if form == _SCALAR else value
            states.setdefault(segment.parameter, {})[key] = value
        return states


def _wrapped(optimizer: torch.optim.Optimizer, prefix: str) -> Iterator[tuple[str, torch.optim.Optimizer]]:
    """The optimizer and those that it has as attributes, with the prefixes of their states."""
    yield prefix, optimizer
    for name, value in vars(optimizer).items():
        if isinstance(value, torch.optim.Optimizer):
            yield from _wrapped(value, f"{prefix}{name}.")


def _as_tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def _describe(value: Any) -> str:
    return f"a tensor of {value.numel()} elements" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
