"""State dicts of optimizers in PyTorch's form: {"state": {position: {name: tensor}}, "param_groups": [...]}, with whole
tensors.

A state dict of one stage and world size can be loaded at any other, and by plain PyTorch. State dicts of PyTorch can be
loaded, too. All ranks must call these functions, and must load the same state. Memory: the whole state on the host of
every rank. `save_checkpoint` needs none of that, and saves fp32 masters, too, which are no part of an optimizer's
state.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

import torch

from . import _C
from .checkpoint_values import decode
from .errors import UsageError
from .shard_state import ShardState, State

Group = dict[str, Any]
_Kind = _C.ValueKind


class EngineState:
    """The state of an optimizer whose update the engine computes."""

    def __init__(self, core: _C.Engine, kind: _C.OptimizerKind, config: _C.Config):
        self._core = core
        self._names = config.optimizer_states
        self._counts = kind != _C.OptimizerKind.SGD  # PyTorch's keeps no "step"
        self._start = config.optimizer_params["initial_accumulator_value"]

    def of(self, parameter: torch.Tensor) -> State:
        """The state of a parameter, empty before the first update. Collective."""
        updates = self._core.updates(parameter)
        if updates == 0:
            return {}
        step = {"step": torch.tensor(float(updates))} if self._counts else {}
        values = {name: self._core.full_value(parameter, _Kind.STATE, name) for name in self._names}
        self._core.wait_for_device("the optimizer's state of a parameter")
        return step | {name: value.cpu() for name, value in values.items() if value is not None}

    def check(self, parameter: torch.Tensor, state: State, label: str) -> None:
        """Raises UsageError if `put` would fail or ignore something."""
        if not state:
            return
        expected = {"step", *self._names} if self._counts else set(self._names)
        if state.keys() != expected:
            raise UsageError(
                f"{label}: the optimizer keeps {sorted(expected)}, the state dict has {sorted(state)}; it is another optimizer's"
            )
        for name in self._names:
            _check_shape(parameter, name, state[name], label)
        if self._names and self._core.local_value(parameter, _Kind.STATE, self._names[0]) is None:
            raise UsageError(
                f"{label} is frozen here and has state in the state dict: unfreeze it before zeropage.initialize, or leave it out"
            )

    def put(self, parameter: torch.Tensor, state: State) -> None:
        """Collective."""
        if not state and self._core.updates(parameter) == 0:
            return
        for name in self._names:
            value = state[name] if state else torch.full(parameter.shape, self._start if name == "sum" else 0.0)
            self._core.set_full_value(parameter, value, _Kind.STATE, name)
        # If there is a momentum, at least one update was made, also if updates are not counted.
        self._core.set_updates(parameter, int(state.get("step", 1)) if state else 0)


class WholeState:
    """The state of an optimizer that PyTorch runs on shards: joins the parts of all ranks, and cuts them again. Made
    for one state dict."""

    def __init__(self, core: _C.Engine, shards: ShardState, communicator: _C.Communicator):
        self._core = core
        self._shards = shards
        self._communicator = communicator
        self._described: dict[str, dict[str, Any]] | None = None

    def of(self, parameter: torch.Tensor) -> State:
        """Collective. Raises UsageError for a state of a part of it that is neither elementwise nor a number."""
        forms = self._describe().get(str(self._shards.index_of(parameter)), {})
        return {key: self._value(parameter, key, form) for key, form in forms.items()}

    def _describe(self) -> dict[str, dict[str, Any]]:
        # A rank without elements of a parameter does not know its states. The first rank with elements sends them.
        if self._described is not None:
            return self._described
        mine: dict[str, Any]
        try:
            mine = {"found": self._shards.describe()}
        except UsageError as error:
            mine = {"error": str(error)}
        described = [json.loads(text) for text in self._core.exchange_strings(json.dumps(mine))]
        errors = [each["error"] for each in described if "error" in each]
        if errors:
            raise UsageError(errors[0])
        self._described = {}
        for rank, each in reversed(list(enumerate(described))):
            for forms in each["found"].values():
                for form in forms.values():
                    form["rank"] = rank
            self._described.update(each["found"])
        return self._described

    def _value(self, parameter: torch.Tensor, key: str, form: dict[str, Any]) -> Any:
        if "json" in form:
            return self._from_owner(parameter, key, form)
        if "value" in form:
            return (
                torch.tensor(form["value"], dtype=getattr(torch, form["dtype"])) if "dtype" in form else form["value"]
            )
        part = self._shards.local(parameter, key)
        flat = torch.empty(0, device=parameter.device) if part is None else part.float()
        whole = self._core.assemble_value(parameter, flat)
        self._core.wait_for_device("the optimizer's state of a parameter")
        return whole.to("cpu", getattr(torch, form["dtype"]))

    def _from_owner(self, parameter: torch.Tensor, key: str, form: dict[str, Any]) -> Any:
        """A value that belongs to the whole parameter, from the rank that has it."""
        received = [
            torch.empty(shape, dtype=getattr(torch, dtype), device=parameter.device) for shape, dtype in form["tensors"]
        ]
        if self._communicator.rank == form["rank"]:
            for mine, tensor in zip(
                received, self._shards.tensors_of(self._shards.index_of(parameter), key), strict=True
            ):
                mine.copy_(tensor)
        for tensor in received:
            self._communicator.broadcast(tensor, form["rank"])
        self._core.wait_for_device("the optimizer's state of a parameter")
        return decode(form["json"], lambda name: received[int(name.removeprefix("host/"))].cpu())

    def check(self, parameter: torch.Tensor, state: State, label: str) -> None:
        """Raises UsageError if `put` would fail."""
        if self._shards.sees_whole(parameter):
            return
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.numel() != 1:
                _check_shape(parameter, key, value, label)

    def put(self, parameter: torch.Tensor, state: State) -> None:
        self._shards.put(parameter, {key: self._own(parameter, key, value) for key, value in state.items()})

    def _own(self, parameter: torch.Tensor, key: str, value: Any) -> Any:
        """This rank's elements."""
        if not isinstance(value, torch.Tensor):
            return copy.deepcopy(value)
        by_element = value.shape == parameter.shape and (value.dim() > 0 or key != "step")
        return self._shards.cut(parameter, value.to(parameter.device), self._core) if by_element else value.clone()


def _check_shape(parameter: torch.Tensor, name: str, value: Any, label: str) -> None:
    shape = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
    if shape != list(parameter.shape):
        raise UsageError(
            f"{label}: its shape is {list(parameter.shape)}, and the state '{name}' has {shape}; a state dict has whole tensors"
        )


def take(groups: list[Group], states: EngineState | WholeState) -> dict[str, Any]:
    """The state dict. Collective."""
    state: dict[int, State] = {}
    for position, parameter in _positions(groups):
        if found := states.of(parameter):
            state[position] = found
    return {"state": state, "param_groups": _pack(groups)}


def put(groups: list[Group], states: EngineState | WholeState, state_dict: dict[str, Any]) -> None:
    """Loads the states, but not the groups' hyperparameters. Collective. Raises UsageError for the state of another
    model or optimizer; then nothing has changed."""
    counts = [len(group["params"]) for group in groups]
    loaded = [len(group["params"]) for group in state_dict["param_groups"]]
    if counts != loaded:
        raise UsageError(
            f"the optimizer has groups of {counts} parameters, the state dict groups of {loaded}: it is another model's or optimizer's"
        )
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    matched = [
        (parameter, state_dict["state"].get(key, {}))
        for (_, parameter), key in zip(_positions(groups), keys, strict=True)
    ]
    for position, (parameter, state) in enumerate(matched):
        states.check(parameter, state, f"parameter {position} of the optimizer")
    for parameter, state in matched:
        states.put(parameter, state)


def _pack(groups: list[Group]) -> list[Group]:
    """The groups with positions instead of parameters."""
    packed, start = [], 0
    for group in groups:
        positions = list(range(start, start + len(group["params"])))
        start += len(positions)
        packed.append({**{key: value for key, value in group.items() if key != "params"}, "params": positions})
    return packed


def _positions(groups: list[Group]) -> Iterator[tuple[int, torch.Tensor]]:
    return enumerate(parameter for group in groups for parameter in group["params"])
