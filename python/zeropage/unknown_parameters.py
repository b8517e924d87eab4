"""Finds parameters that a model or an optimizer has but the engine does not train. They are refused, or reported by
name.

torch's registration hooks count here when a module gets a parameter or a submodule. So a step searches the model only
when something was registered since the last search.
"""

import gc
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from . import _C
from .errors import ConfigError
from .wrapped_tensors import is_wrapped

_NAMED = 5  # number of names in a message
_registered = 0


def _count(*_: Any) -> None:
    global _registered
    _registered += 1


torch_module.register_module_parameter_registration_hook(_count)
torch_module.register_module_module_registration_hook(_count)


def check_groups(model: torch.nn.Module, groups: list[dict[str, Any]]) -> None:
    """Raises ConfigError for groups with parameters that are not in the model while trained ones of the model are in no
    group: they were made for another model, or for this one before its parameters were replaced. If all parameters of
    the model are in groups, other parameters are allowed."""
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    own = {id(parameter) for parameter in model.parameters()}
    left_out = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in grouped
    ]
    if not left_out:
        return
    for index, group in enumerate(groups):
        for position, parameter in enumerate(group["params"]):
            if id(parameter) not in own:
                raise ConfigError(
                    f"parameter {position} of group {index} of the optimizer{_called(group, position)}, of shape {list(parameter.shape)}, is "
                    f"not one of the model's, and {len(left_out)} of the model's that require gradients are in no group, the first of them "
                    f"{left_out[0]!r}. Was the optimizer made for a copy of the model, or before its parameters were replaced? Make it from "
                    "model.parameters(). If these should not be trained, call requires_grad_(False) on them"
                )
    if len(left_out) < len(own):
        _say(f"{_list(left_out)} require gradients and are in no group of the optimizer: they are not trained")


def name_others(groups: Iterable[dict[str, Any]], known: dict[int, str]) -> list[tuple[str, torch.Tensor]]:
    """Names for the parameters of groups that are not in `known` (id -> name): the name in the group, or the name in a
    module that has the parameter, such as "ArcLoss.weight", or the position in the groups."""
    others = [
        (f"group{index}.{position}", group.get("param_names", ())[position : position + 1], parameter)
        for index, group in enumerate(groups)
        for position, parameter in enumerate(group["params"])
        if id(parameter) not in known
    ]
    owners = _owners({id(parameter) for _, _, parameter in others}) if others else {}
    named: list[tuple[str, torch.Tensor]] = []
    taken = set(known.values())
    seen: set[int] = set()
    for place, given, parameter in others:
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        name = given[0] if given else owners.get(id(parameter), place)
        name = place if name in taken else name
        taken.add(name)
        named.append((name, parameter))
    return named


class UnknownParameters:
    """For one engine. trained: its parameters at the start, as (name, parameter, group)."""

    def __init__(self, model: torch.nn.Module, trained: list[tuple[str, torch.Tensor, int]]):
        self._model = model
        self._known = {id(parameter) for _, parameter, _ in trained}
        self._without_group = [
            (name, p) for name, p, group in trained if group < 0 and not p.requires_grad and p.is_floating_point()
        ]
        self._said: set[int] = set()
        self._looked_at = _registered

    def say(self) -> None:
        """Warns of new parameters in the model, and of unfrozen ones that are in no group, once for each. Cost: a
        comparison, and one per parameter that is in no group."""
        unfrozen = [name for name, parameter in self._without_group if parameter.requires_grad]
        if unfrozen:
            _say(f"{_list(unfrozen)} require gradients now and are in no group of the optimizer: they are not trained")
            self._without_group = [(name, parameter) for name, parameter in self._without_group if name not in unfrozen]
        if self._looked_at == _registered:
            return
        self._looked_at = _registered
        new = self.new()
        named = {id(parameter): name for name, parameter in self._model.named_parameters()}
        names = [named[id(parameter)] for parameter in new if id(parameter) not in self._said]
        if names:
            self._said.update(map(id, new))
            _say(
                f"new in the model after zeropage.initialize: {_list(names)}. The engine does not train them, and checkpoints do not have "
                "them; call engine.add_parameters() on every rank, between updates, or make them before initialize"
            )

    def new(self) -> list[torch.Tensor]:
        """The model's parameters that the engine does not have; without frozen ones that wrap other tensors, which need
        no engine."""
        missing = (parameter for parameter in self._model.parameters() if id(parameter) not in self._known)
        return [parameter for parameter in missing if parameter.requires_grad or not is_wrapped(parameter)]

    def learn(self, parameters: Iterable[torch.Tensor]) -> None:
        """Records that the engine has these parameters, too."""
        self._known.update(map(id, parameters))


def _say(message: str) -> None:
    _C.log_warn(message)


def _list(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} parameter{'s' if len(names) > 1 else ''} ({shown}{more})"


def _called(group: dict[str, Any], position: int) -> str:
    names = group.get("param_names", ())
    return f" ({names[position]!r})" if position < len(names) else ""


def _owners(wanted: set[int]) -> dict[int, str]:
    """id -> "Class.attribute" of the module that has the parameter, except if two modules of one class have one under
    the same name."""
    found: dict[int, set[str]] = {}
    for candidate in gc.get_objects():
        if not issubclass(type(candidate), torch.nn.Module):
            continue
        for name, parameter in candidate.__dict__.get("_parameters", {}).items():
            if id(parameter) in wanted:
                found.setdefault(id(parameter), set()).add(f"{type(candidate).__name__}.{name}")
    return {key: min(names) for key, names in found.items()}
