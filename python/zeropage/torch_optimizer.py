"""Optimizers of PyTorch on what this rank owns of the parameters.

The client's optimizer object updates flat fp32 shards in the place of the model's parameters: page by page its groups hold the shards of
that page, and the model's parameters again afterwards. Its state is keyed by the shards. That is exact for optimizers that treat every element
alike and count steps in the state of a parameter or in a group.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import _C
from .errors import CheckpointError, ConfigError, UsageError

# Those that torch documents as working element by element.
ELEMENTWISE = ("Adadelta", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
_WHOLE_PARAMETERS = ("Adafactor", "LBFGS", "Muon", "SparseAdam")

State = dict[str, Any]
Segment = tuple[int, torch.Tensor, torch.Tensor]

# How a state is called in a checkpoint, before its name: by the element, one tensor per parameter, one number per parameter.
_ELEMENTS, _SCALAR, _NUMBER = "torch", "torch_scalar", "torch_number"


def check_elementwise(optimizer: torch.optim.Optimizer, allow_untested: bool) -> None:
    """Raises ConfigError for an optimizer that cannot run on shards, or of which nobody has said that it can."""
    kind = type(optimizer)
    name = f"{kind.__module__}.{kind.__qualname__}"
    known = {getattr(torch.optim, each) for each in ELEMENTWISE}
    if isinstance(optimizer, tuple(getattr(torch.optim, each) for each in _WHOLE_PARAMETERS if hasattr(torch.optim, each))):
        raise ConfigError(f"the optimizer {name} looks at whole parameters, and ranks update parts of them: use one that works by the element")
    if kind not in known and not allow_untested:
        raise ConfigError(
            f"the optimizer is a {name}, of which it is not known that it treats every element alike; if it does, write "
            '"zero_allow_untested_optimizer": true in the config'
        )
    if optimizer.state:
        raise ConfigError(f"the optimizer {name} makes its state when it is made, for whole parameters; ranks update parts of them")


def configured(section: dict[str, Any], groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of torch.optim that a configuration's section names."""
    return getattr(torch.optim, section["type"])(groups, **{key: value for key, value in section["params"].items() if value is not None})


class ShardUpdate:
    """Runs `client` on shards. Parameters are called by their index in the engine."""

    def __init__(self, client: torch.optim.Optimizer):
        self.client = client
        self._absent = torch.empty(0)
        self._shards: dict[int, torch.nn.Parameter] = {}
        self._names: list[str] = []
        self._group_of: list[int] = []
        self._groups_before: list[dict[str, Any]] = []

    def attach(self, parameters: list[tuple[str, torch.Tensor, int]], segments: list[tuple[int, int, int]]) -> None:
        """parameters: as the engine was given them. segments: (parameter, first element, elements) that this rank updates."""
        self._names = [name for name, _, _ in parameters]
        self._index_of = {id(parameter): index for index, (_, parameter, _) in enumerate(parameters)}
        self._group_of = [group for _, _, group in parameters]
        self._segments = segments

    def begin_step(self) -> None:
        self._groups_before = [_hyperparameters(group) for group in self.client.param_groups]

    def __call__(self, segments: list[Segment]) -> None:
        """Updates the segments of one page. Every page of a step starts from the same hyperparameters and counts of the groups."""
        for group, before in zip(self.client.param_groups, self._groups_before, strict=True):
            group.update(before)
        shards = []
        for index, values, gradient in segments:
            shard = self._shard(index)
            shard.data, shard.grad = values, gradient
            shards.append(shard)
        with self._in_place_of_parameters(self._group_of[segments[0][0]], shards):
            self.client.step()
        for shard in shards:
            shard.data, shard.grad = self._absent, None

    def _shard(self, index: int) -> torch.nn.Parameter:
        return self._shards.setdefault(index, torch.nn.Parameter(self._absent))

    @contextmanager
    def _in_place_of_parameters(self, index: int, shards: list[torch.nn.Parameter]) -> Iterator[None]:
        whole = [group["params"] for group in self.client.param_groups]
        for position, group in enumerate(self.client.param_groups):
            group["params"] = shards if position == index else []
        try:
            yield
        finally:
            for group, parameters in zip(self.client.param_groups, whole, strict=True):
                group["params"] = parameters

    def state_bytes(self, device: torch.device) -> tuple[int, int]:
        """Bytes of its state's tensors in the memory of the device, and elsewhere, which is the host."""
        bytes_of = [0, 0]
        for state in self.client.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    bytes_of[value.device.type != device.type] += value.nbytes
        return bytes_of[0], bytes_of[1]

    # -- its state, of the elements that this rank updates

    def state_dict(self) -> dict[int, State]:
        """Position of a parameter in the groups -> its state, as in torch; tensors hold this rank's elements."""
        positions = enumerate(parameter for group in self.client.param_groups for parameter in group["params"])
        found = {position: self._shards.get(self._index_of[id(parameter)]) for position, parameter in positions}
        return {position: dict(self.client.state[shard]) for position, shard in found.items() if shard in self.client.state}

    def load_state_dict(self, states: dict[int, State]) -> None:
        parameters = [parameter for group in self.client.param_groups for parameter in group["params"]]
        numels = {index: numel for index, _, numel in self._segments}
        loaded = {self._index_of[id(parameters[position])]: state for position, state in states.items()}
        for index, state in loaded.items():
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.dim() > 0 and value.numel() != numels.get(index):
                    raise UsageError(
                        f"state '{key}' of parameter '{self._names[index]}' has {value.numel()} elements, and this rank updates "
                        f"{numels.get(index, 0)} of the parameter: it is of another rank or world size; use load_checkpoint"
                    )
        self.replace_state({index: {key: _copy(value) for key, value in state.items()} for index, state in loaded.items()})

    def replace_state(self, states: dict[int, State]) -> None:
        self.client.state.clear()
        for index, state in states.items():
            self.client.state[self._shard(index)] = state

    def tensors_to_save(self) -> list[tuple[str, int, int, torch.Tensor]]:
        """(kind, parameter, first element, values); values without dimensions belong to the parameter as a whole.

        Raises CheckpointError for a state that is neither by the element nor a number.
        """
        tensors = []
        for index, offset, numel in self._segments:
            for key, value in self.client.state.get(self._shards.get(index), {}).items():
                if value is None:
                    continue
                if not isinstance(value, (torch.Tensor, bool, int, float)) or (
                    isinstance(value, torch.Tensor) and value.dim() > 0 and value.numel() != numel
                ):
                    raise CheckpointError(
                        f"state '{key}' that {type(self.client).__name__} keeps of parameter '{self._names[index]}' is neither by the element "
                        f"({numel} here) nor a number: checkpoints cannot hold {_describe(value)}"
                    )
                kind = _NUMBER if not isinstance(value, torch.Tensor) else _SCALAR if value.dim() == 0 else _ELEMENTS
                tensors.append((f"{kind}.{key}", index, offset, _as_tensor(value).flatten() if kind == _ELEMENTS else _as_tensor(value)))
        return tensors

    def read_state(self, step: _C.Checkpoint) -> dict[int, State]:
        """What a checkpoint has for this rank's elements. Raises CheckpointError, IoError."""
        owned = {self._names[index]: (index, offset, numel) for index, offset, numel in self._segments}
        states: dict[int, State] = {}
        for tensor in step.tensor_names():
            kind, _, name = tensor.partition("/")
            form, _, key = kind.partition(".")
            if form not in (_ELEMENTS, _SCALAR, _NUMBER) or name not in owned:
                continue
            index, offset, numel = owned[name]
            whole = form != _ELEMENTS
            value = step.read_range(tensor, 0 if whole else offset, 1 if whole else numel)
            states.setdefault(index, {})[key] = value.item() if form == _NUMBER else value.reshape(()) if form == _SCALAR else value
        return states


def _hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _as_tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def _describe(value: Any) -> str:
    return f"a tensor of {value.numel()} elements" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
