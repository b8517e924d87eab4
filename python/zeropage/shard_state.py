"""The state that an optimizer of PyTorch keeps of the parameters that this rank updates. It is taken over from the
user's object, counted, saved and loaded.

The optimizer updates a flat part of a parameter, or the whole parameter in its shape (optimizer_sees.py).

With NVMe offload the state is on the drive, except while the optimizer uses it (session/tensors_on_drive.h). Reads of a
state that is on the drive get a copy.

An optimizer may wrap others (Lookahead). Their state is included, under the name of the attribute that holds them.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from . import _C
from .checkpoint_values import decode, encode
from .errors import CheckpointError, ConfigError, UsageError

State = dict[str, Any]

# Prefixes of states in a checkpoint: elementwise, one tensor per parameter, one number per parameter.
_ELEMENTS, _SCALAR, _NUMBER = "torch", "torch_scalar", "torch_number"
# The state of a parameter that the optimizer gets whole: as JSON, and the tensors in it.
_WHOLE, _PART = "torch_value", "torch_part"


@dataclass(frozen=True)
class Segment:
    """The part of a parameter that this rank updates: elements [offset, offset + numel) in the order of memory."""

    parameter: int
    offset: int
    numel: int
    whole: _C.WholeShape | None = None  # set if it is the whole parameter, which the optimizer gets in this shape

    def has(self, value: Any) -> bool:
        """Whether a state has a value for each element."""
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            return False
        return value.numel() == self.numel if self.whole is None else tuple(value.shape) == self.whole.extents

    def flat(self, value: torch.Tensor) -> torch.Tensor:
        """An elementwise state, flat, in the parameter's order in memory."""
        return value.flatten() if self.whole is None else self.whole.flat(value)

    def shaped(self, flat: torch.Tensor) -> torch.Tensor:
        """The reverse; a view."""
        return flat if self.whole is None else self.whole.shaped(flat)


class ShardState:
    def __init__(
        self,
        client: torch.optim.Optimizer,
        names: list[str],
        segments: list[Segment],
        whole: _C.WholeParameters,
        drive: _C.TensorsOnDrive | None = None,
        in_memory: tuple[str, ...] = (),
    ):
        """names: of the engine's parameters. whole: the parameters that the client gets whole. drive: where state is;
        None: in memory. in_memory: keys of states that stay in memory."""
        self._client = client
        self._whole = whole
        self._drive = drive
        self._in_memory = in_memory
        self._optimizers = dict(_wrapped(client, ""))
        self._names = names
        self._segments = {segment.parameter: segment for segment in segments}
        self._shards = {index: torch.nn.Parameter(torch.empty(0, dtype=torch.float32)) for index in self._segments}
        self._of_shard = {id(shard): index for index, shard in self._shards.items()}
        self._index_of: dict[int, int] = {}
        self._to_move: set[int] = set()

    def extend(self, parameters: list[tuple[str, torch.Tensor, int]], segments: list[Segment]) -> None:
        """Call after parameters were added to the engine. Both lists have all parameters."""
        self._names = [name for name, _, _ in parameters]
        self._index_of = {id(parameter): index for index, (_, parameter, _) in enumerate(parameters)}
        for segment in segments:
            self._segments[segment.parameter] = segment
            self._shards.setdefault(segment.parameter, torch.nn.Parameter(torch.empty(0, dtype=torch.float32)))
        self._of_shard = {id(shard): index for index, shard in self._shards.items()}

    def groups(self) -> list[dict[str, Any]]:
        """The groups of the client and of the optimizers that it wraps, each once."""
        return list(
            {id(group): group for optimizer in self._optimizers.values() for group in optimizer.param_groups}.values()
        )

    def shard(self, index: int) -> torch.nn.Parameter:
        return self._shards[index]

    def shards_of(self, parameters: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
        """The shards of those parameters that this rank updates, completely or in part."""
        indices = (self._index_of.get(id(parameter)) for parameter in parameters)
        return [self._shards[index] for index in indices if index in self._shards]

    def move_to(self, index: int, device: torch.device) -> None:
        """Moves state that was taken over to the memory of the shard's update, once."""
        if index not in self._to_move:
            return
        self._to_move.remove(index)
        for optimizer in self._optimizers.values():
            state = optimizer.state.get(self._shards[index], {})
            state.update(
                {key: _mapped(value, lambda tensor: self._moved(tensor, device)) for key, value in state.items()}
            )

    def _moved(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        return tensor if tensor.dim() == 0 or tensor.device == device else self._read(tensor).to(device)

    # -- on the drive

    def take_from_drive(self, index: int | None = None) -> None:
        """Gives state its memory again; index: that of this parameter only."""
        if self._drive is not None:
            for _, _, _, value in self._entries(index):
                for tensor in _tensors_in(value):
                    self._drive.get(tensor)

    def move_to_drive(self, index: int | None = None) -> None:
        """The reverse."""
        if self._drive is not None:
            for each, _, key, value in self._entries(index):
                for tensor in _tensors_in(value) if key not in self._in_memory else ():
                    self._drive.put(tensor, f"state '{key}' of parameter '{self._names[each]}'")

    @contextmanager
    def in_memory(self, shard: torch.nn.Parameter) -> Iterator[None]:
        """While the optimizer updates this shard."""
        index = self._of_shard[id(shard)]
        self.take_from_drive(index)
        yield
        self.move_to_drive(index)

    def _read(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self._drive is None else self._drive.read(tensor)

    def adopt(self, parameters: list[torch.Tensor], communicator: _C.Communicator) -> None:
        """Converts state of the model's parameters to state of this rank's parts of them, with rank 0's values.
        Collective when there is any.

        Raises ConfigError for tensors that cannot be divided like the parameter.
        """
        self._index_of = {id(parameter): index for index, parameter in enumerate(parameters)}
        for optimizer in self._optimizers.values():
            for key in [key for key in optimizer.state if isinstance(key, torch.Tensor)]:
                index, state = self._index_of.get(id(key)), optimizer.state.pop(key)
                cut = {name: self._cut(index, key, name, value, communicator) for name, value in state.items()}
                if index in self._shards:
                    optimizer.state[self._shards[index]] = cut
                    self._to_move.add(index)

    def _cut(
        self, index: int | None, parameter: torch.Tensor, name: str, value: Any, communicator: _C.Communicator
    ) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        segment = None if index is None else self._segments.get(index)
        sees_whole = index is not None and index in self._whole
        whole = value.detach().to(torch.float32 if value.is_floating_point() and not sees_whole else value.dtype)
        if value.shape == parameter.shape:
            whole = _C.WholeShape.of(parameter).flat(whole)
        elif value.numel() != 1 and not sees_whole:
            owner = "a tensor outside the model" if index is None else f"parameter '{self._names[index]}'"
            raise ConfigError(
                f"state '{name}' that the optimizer has of {owner} has the shape {list(value.shape)}, the parameter "
                f"{list(parameter.shape)}: ranks update parts of parameters, and this state cannot be divided into parts; use an optimizer that "
                "is elementwise"
            )
        whole = whole.contiguous().clone()
        communicator.job.broadcast(whole, 0)
        if value.shape != parameter.shape or segment is None:
            return whole
        return segment.shaped(whole.flatten()[segment.offset : segment.offset + segment.numel].clone())

    def local(self, parameter: torch.Tensor, name: str) -> torch.Tensor | None:
        """This rank's elements of an elementwise state, flat; None: there is none (yet), or this rank has no
        elements."""
        value = self._by_element(parameter, name)
        return None if value is None else self._segments[self.index_of(parameter)].flat(self._read(value).detach())

    def set_local(self, parameter: torch.Tensor, name: str, flat: torch.Tensor) -> None:
        """Writes into the optimizer's own tensor. Raises UsageError when there is none with this number of elements."""
        value = self._by_element(parameter, name)
        if value is None and flat.numel() > 0:
            raise UsageError(
                f"the optimizer has no elementwise state {name!r} of this parameter; its first step makes the state"
            )
        if value is None:
            return
        if value.numel() != flat.numel():
            raise UsageError(f"this rank has {value.numel()} elements of the state {name!r}; got {flat.numel()}")
        index = self.index_of(parameter)
        self.take_from_drive(index)
        value.copy_(self._segments[index].shaped(flat).view_as(value))
        self.move_to_drive(index)

    def set_full(self, parameter: torch.Tensor, name: str, value: torch.Tensor, core: _C.Engine) -> None:
        """Writes this rank's elements of an elementwise state, of which `value` [parameter.shape] has all. Raises
        UsageError as `set_local`."""
        if not self.sees_whole(parameter):
            self.set_local(parameter, name, core.piece_of_value(parameter, value))
        elif (index := self.index_of(parameter)) in self._shards:  # this rank owns it
            self.set_local(parameter, name, self._segments[index].flat(value))

    def _by_element(self, parameter: torch.Tensor, name: str) -> torch.Tensor | None:
        index = self._index_of.get(id(parameter), -1)
        owner = self._owner(name)
        value = (
            None
            if index not in self._shards
            else self._optimizers[owner].state.get(self._shards[index], {}).get(name.removeprefix(owner))
        )
        return value if value is not None and self._segments[index].has(value) else None

    def bytes_on(self, device: torch.device) -> tuple[int, int]:
        """Bytes of the state's tensors in memory, of the device and of the host."""
        bytes_of = [0, 0]
        for _, _, _, value in self._entries():
            for tensor in _tensors_in(value):
                if self._drive is not None and self._drive.has(tensor):
                    continue
                bytes_of[tensor.device.type != device.type] += tensor.nbytes
        return bytes_of[0], bytes_of[1]

    def _entries(self, only: int | None = None) -> Iterator[tuple[int, str, str, Any]]:
        """(parameter, prefix of the optimizer's name, key, value). only: of this parameter, if this rank has a part."""
        indices = self._shards if only is None else {only} & self._shards.keys()
        for index, shard in ((index, self._shards[index]) for index in indices):
            for prefix, optimizer in self._optimizers.items():
                for key, value in optimizer.state.get(shard, {}).items():
                    yield index, prefix, key, value

    # -- for state dicts of whole tensors

    def index_of(self, parameter: torch.Tensor) -> int:
        return self._index_of[id(parameter)]

    def describe(self) -> dict[int, dict[str, dict[str, Any]]]:
        """Parameter -> key -> the type of its elements, or its value, or the JSON of a value that belongs to a whole
        parameter.

        Raises UsageError for a state of a part of a parameter that is neither elementwise nor a number.
        """
        found: dict[int, dict[str, dict[str, Any]]] = {}
        for index, prefix, key, value in self._entries():
            tensor = isinstance(value, torch.Tensor)
            form: dict[str, Any] = {"dtype": _name_of(value.dtype)} if tensor else {}
            if index in self._whole:
                tensors: dict[str, torch.Tensor] = {}
                form = {
                    "json": encode(value, tensors, key),
                    "tensors": [[list(each.shape), _name_of(each.dtype)] for each in tensors.values()],
                }
            elif not self._segments[index].has(value):
                if not isinstance(value, (bool, int, float, type(None))) and not (tensor and value.numel() == 1):
                    raise UsageError(
                        f"state '{key}' of parameter '{self._names[index]}' is neither elementwise nor a number ({_describe(value)}): a "
                        "state dict cannot have it"
                    )
                form["value"] = value.item() if tensor else value
            found.setdefault(index, {})[prefix + key] = form
        return found

    def tensors_of(self, index: int, key: str) -> list[torch.Tensor]:
        """The tensors of `describe`'s "json", in its order."""
        owner = self._owner(key)
        state = self._optimizers[owner].state[self._shards[index]]
        return [self._read(tensor) for tensor in _tensors_in(state[key.removeprefix(owner)])]

    def sees_whole(self, parameter: torch.Tensor) -> bool:
        """Whether the optimizer gets the whole parameter, on one of the ranks."""
        return self.index_of(parameter) in self._whole

    def full(self, parameter: torch.Tensor, name: str) -> torch.Tensor | None:
        """The owner's elementwise state of a parameter that the optimizer gets whole. Collective."""
        mine = self._by_element(parameter, name)
        return self._whole.from_owner(self.index_of(parameter), None if mine is None else self._read(mine))

    def cut(self, parameter: torch.Tensor, value: torch.Tensor, core: _C.Engine) -> torch.Tensor:
        """This rank's part of an elementwise state, cut from the whole; a new tensor."""
        return value.clone() if self.sees_whole(parameter) else core.piece_of_value(parameter, value).clone()

    def put(self, parameter: torch.Tensor, state: State) -> None:
        """Replaces the state of one parameter by this rank's elements. Existing tensors stay the same objects."""
        index = self.index_of(parameter)
        self.take_from_drive(index)
        for key, value in state.items():
            present = self._by_element(parameter, key)
            if isinstance(value, torch.Tensor) and present is not None and present.shape == value.shape:
                state[key] = present.detach().copy_(value)
        self._put(index, state)
        self.move_to_drive(index)
        self._to_move.add(index)

    def replace(self, states: dict[int, State]) -> None:
        """`states`: by parameter, this rank's elements; keys with the prefix of the optimizer they belong to."""
        for index in self._shards:
            self._put(index, states.get(index, {}))
            self.move_to_drive(index)

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
        """State that optimizers keep under keys that are not parameters (counts), by the prefix of the optimizer."""
        return {
            prefix: {key: value for key, value in optimizer.state.items() if not isinstance(key, torch.Tensor)}
            for prefix, optimizer in self._optimizers.items()
        }

    def replace_values_of_no_parameter(self, values: dict[str, State] | None) -> None:
        for prefix, loaded in (values or {}).items():
            if prefix in self._optimizers:
                self._optimizers[prefix].state.update(loaded)

    def tensors_to_save(self) -> list[tuple[str, int, int, torch.Tensor]]:
        """For parts of parameters: (kind, parameter, first element, values); values without dimensions belong to the
        whole parameter.

        Raises CheckpointError for a state that is neither elementwise nor a number.
        """
        tensors = []
        for index, prefix, key, value in self._entries():
            if value is None or index in self._whole:
                continue
            segment = self._segments[index]
            by_element = segment.has(value)
            if not isinstance(value, (torch.Tensor, bool, int, float)) or not (
                by_element or _as_tensor(value).numel() == 1
            ):
                raise CheckpointError(
                    f"state '{key}' that {type(self._client).__name__} keeps of parameter '{self._names[index]}' is neither elementwise ({segment.numel} here) nor a number: checkpoints cannot hold {_describe(value)}"
                )
            kind = _NUMBER if not isinstance(value, torch.Tensor) else _ELEMENTS if by_element else _SCALAR
            tensor = _as_tensor(self._read(value) if isinstance(value, torch.Tensor) else value)
            tensors.append(
                (f"{kind}.{prefix}{key}", index, segment.offset, tensor.flatten() if by_element else tensor.reshape(()))
            )
        return tensors

    def whole_to_save(self, rank: int) -> dict[str, torch.Tensor]:
        """The state for a checkpoint, by name, of the parameters that the optimizer gets whole and that this rank owns.
        Raises CheckpointError."""
        states: dict[int, State] = {}
        for index, prefix, key, value in self._entries():
            if index in self._whole and self._whole.owner(index) == rank:
                states.setdefault(index, {})[prefix + key] = value
        saved: dict[str, torch.Tensor] = {}
        for index, state in states.items():
            parts: dict[str, torch.Tensor] = {}
            text = json.dumps(encode(state, parts, f"state of parameter '{self._names[index]}'"), allow_nan=False)
            saved[f"{_WHOLE}/{self._names[index]}"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
            saved.update(
                {
                    f"{_PART}.{number}/{self._names[index]}": self._read(part).detach()
                    for number, part in enumerate(parts.values())
                }
            )
        return saved

    def read(self, step: _C.Checkpoint) -> dict[int, State]:
        """The state in a checkpoint for this rank's elements. Raises CheckpointError, IoError."""
        saved = _C.SavedOptimizerStates(step)
        is_torchs = type(self._client).__module__.startswith("torch.optim.")
        states: dict[int, State] = {}
        for index, segment in self._segments.items():
            name = self._names[index]
            for form, key, tensor, updates in saved.for_object(name, is_torchs):
                if form == _WHOLE:
                    states[index] = self._read_whole(step, segment, name)
                    continue
                if tensor is None:
                    value = torch.tensor(float(updates or 0))
                elif form == _ELEMENTS:
                    value = self._own(segment.shaped(step.read_range(tensor, segment.offset, segment.numel)))
                else:
                    value = step.read_range(tensor, 0, 1).reshape(())
                states.setdefault(index, {})[key] = value.item() if form == _NUMBER else value
        return states

    def _read_whole(self, step: _C.Checkpoint, segment: Segment, name: str) -> State:
        if segment.whole is None:
            raise CheckpointError(
                f"the optimizer's state of parameter '{name}' was saved for the whole parameter, and {type(self._client).__name__} gets parts "
                'of it here: write "zeropage": {"optimizer_sees": "parameters"} in the config, or pass load_optimizer_states=False'
            )
        text = bytes(step.read_tensor(f"{_WHOLE}/{name}").tolist()).decode()
        prefix = f"{_PART}."
        return decode(
            json.loads(text),
            lambda part: self._own(step.read_tensor(f"{prefix}{part.removeprefix('host/')}/{name}")),
        )

    def _own(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view shares its memory, and could not be moved to the drive."""
        return tensor if self._drive is None else tensor.clone()


def _wrapped(optimizer: torch.optim.Optimizer, prefix: str) -> Iterator[tuple[str, torch.optim.Optimizer]]:
    """The optimizer and those that it has as attributes, with the prefixes of their states."""
    yield prefix, optimizer
    for name, value in vars(optimizer).items():
        if isinstance(value, torch.optim.Optimizer):
            yield from _wrapped(value, f"{prefix}{name}.")


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in the value, in the order of `encode`."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(each)


def _as_tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The value with its tensors changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(each, change) for key, each in value.items()}
    return type(value)(_mapped(each, change) for each in value) if type(value) in (list, tuple) else value


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _describe(value: Any) -> str:
    return f"a tensor of {value.numel()} elements" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
