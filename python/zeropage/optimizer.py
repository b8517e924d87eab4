"""Parameter groups: from what the user gives to what the engine takes, and the optimizer object that the user gets back."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from . import _C
from .errors import ConfigError, UsageError

Group = dict[str, Any]


def parameter_groups(model: torch.nn.Module, model_parameters: Any) -> list[Group]:
    """`model_parameters` (None: all that are trainable; parameters; or groups as dicts) as a list of groups."""
    if model_parameters is None:
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]
    if isinstance(model_parameters, torch.Tensor):
        raise ConfigError("model_parameters is one tensor; expected an iterable of parameters or of groups (dicts with 'params')")
    entries = list(model_parameters)
    if all(isinstance(entry, torch.Tensor) for entry in entries):
        return [{"params": entries}]
    if not all(isinstance(entry, dict) and "params" in entry for entry in entries):
        kinds = sorted({type(entry).__name__ for entry in entries})
        raise ConfigError(
            f"model_parameters has entries of type {', '.join(kinds)}; expected parameters only, or only dicts with 'params'"
        )
    return [{**entry, "params": _as_list(entry["params"])} for entry in entries]


def _as_list(params: Any) -> list[torch.Tensor]:
    return [params] if isinstance(params, torch.Tensor) else list(params)


def client_optimizer(optimizer: Any, groups: list[Group]) -> torch.optim.Optimizer:
    """The user's optimizer object (made here when it is a callable), if its update is one that the engine knows.

    Raises ConfigError for other optimizers and for options of torch's Adam that change the update.
    """
    if callable(optimizer) and not isinstance(optimizer, torch.optim.Optimizer):
        plain = len(groups) == 1 and groups[0].keys() == {"params"}
        optimizer = optimizer(groups[0]["params"] if plain else groups)
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        raise ConfigError(
            f"the optimizer is a {type(optimizer).__module__}.{type(optimizer).__qualname__}; this version updates with Adam "
            'and AdamW: pass torch.optim.Adam or torch.optim.AdamW, or write "optimizer": {"type": "AdamW"} in the config'
        )
    if optimizer.state:
        raise ConfigError("the optimizer has taken steps already; pass a fresh one: its moments cannot be taken over")
    for index, group in enumerate(optimizer.param_groups):
        for option in ("amsgrad", "maximize", "differentiable"):
            if group.get(option):
                raise ConfigError(f"param group {index} of the optimizer has {option}=True, which this version does not have")
    return optimizer


def config_group_defaults(adam: _C.AdamParams) -> Group:
    """The hyperparameters of the config's optimizer section under the names that torch.optim uses."""
    return {
        "lr": adam.lr,
        "betas": (adam.beta1, adam.beta2),
        "eps": adam.eps,
        "weight_decay": adam.weight_decay,
        "bias_correction": adam.bias_correction,
        "decoupled_weight_decay": adam.decoupled_decay,
    }


def _to_adam(group: Group) -> _C.AdamParams:
    params = _C.AdamParams()
    params.lr = float(group["lr"])
    params.beta1, params.beta2 = (float(beta) for beta in group["betas"])
    params.eps = float(group["eps"])
    params.weight_decay = float(group["weight_decay"])
    params.bias_correction = bool(group.get("bias_correction", True))
    params.decoupled_decay = bool(group["decoupled_weight_decay"])
    return params


class ZeropageOptimizer(torch.optim.Optimizer):
    """Hyperparameters of the engine's update. The state lives in the engine; `state` stays empty.

    `param_groups` may be read and written as in torch.optim; what is written holds from the next step on.
    """

    def __init__(self, groups: list[Group], defaults: Group, client: torch.optim.Optimizer | None = None):
        """client: shares its groups with this one, so that a scheduler built on either drives the engine."""
        self._core: _C.Engine | None = None
        super().__init__(groups, defaults)
        if client is not None:
            self.param_groups = client.param_groups

    def add_param_group(self, param_group: Group) -> None:
        if self._core is not None:
            raise UsageError("parameters cannot be added after `initialize`; pass all groups to it")
        super().add_param_group(param_group)

    def attach(self, core: _C.Engine) -> None:
        """Binds the engine that updates. A configured schedule has set its first rates by now."""
        self._core = core
        self.pull_hyperparameters()

    def adam_groups(self) -> list[_C.AdamParams]:
        """The groups as the engine takes them."""
        return [_to_adam(group) for group in self.param_groups]

    def pull_hyperparameters(self) -> None:
        """Takes over what a configured schedule has set."""
        for group, adam in zip(self.param_groups, self._core.groups, strict=True):
            group["lr"] = adam.lr
            group["betas"] = (adam.beta1, adam.beta2)

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One micro step of the engine with the hyperparameters as they stand. `engine.step()` calls it."""
        if closure is not None:
            raise UsageError("step(closure) is not possible: the forward and backward run through the engine")
        self._core.groups = self.adam_groups()
        self._core.step()
        if self._core.scheduled_lrs():
            self.pull_hyperparameters()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._core.zero_grad()

    @property
    def overflow(self) -> bool:
        """Whether the last boundary step was skipped because a gradient was inf or nan."""
        return self._core.global_steps > 0 and not self._core.last_step.applied

    @property
    def loss_scale(self) -> float:
        return self._core.loss_scale


def name_parameters(model: torch.nn.Module, groups: Iterable[Group]) -> list[tuple[str, torch.Tensor, int]]:
    """Every parameter once, as (name, parameter, group); group -1: not updated (frozen, or in no group).

    Parameters of the groups that are not the model's follow after those of the model.
    """
    group_of = {id(p): index for index, group in enumerate(groups) for p in group["params"] if p.requires_grad}
    named = list(model.named_parameters())
    known = {id(parameter) for _, parameter in named}
    for index, group in enumerate(groups):
        for position, parameter in enumerate(group["params"]):
            if id(parameter) not in known:
                known.add(id(parameter))
                named.append((f"group{index}.{position}", parameter))
    return [(name, parameter, group_of.get(id(parameter), -1)) for name, parameter in named]
