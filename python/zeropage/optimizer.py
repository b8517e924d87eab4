"""Converts the user's parameter groups for the engine, and has the optimizer object that the user gets."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import optimizer as torch_optimizer

from . import _C
from .compat.leaf_modules import get_z3_leaf_modules
from .errors import ConfigError, UsageError
from .optimizer_sees import check_steps_alone
from .optimizer_state import EngineState, WholeState, put, take
from .torch_optimizer import ShardUpdate
from .unknown_parameters import name_others
from .wrapped_tensors import is_wrapped, require_plain

Group = dict[str, Any]

# The hooks that the user's object and the engine's object share.
_HOOKS = tuple(
    f"_optimizer_{kind}_{when}_hooks" for kind in ("step", "state_dict", "load_state_dict") for when in ("pre", "post")
)

_Kind = _C.OptimizerKind
_TORCH_KINDS = {
    torch.optim.Adam: _Kind.ADAM,
    torch.optim.AdamW: _Kind.ADAMW,
    torch.optim.Adagrad: _Kind.ADAGRAD,
    torch.optim.SGD: _Kind.SGD,
}

# Options of torch.optim's classes that the engine's own update does not have: with them PyTorch runs the object.
NOT_OF_ENGINE = ("amsgrad", "maximize")
_SCHEDULED = ("lr", "betas", "momentum")  # hyperparameters that schedules change


def _options(kind: _C.OptimizerKind) -> list[str] | tuple[str, ...]:
    """The hyperparameters of an optimizer of the engine, with the names of torch.optim."""
    return _SCHEDULED if kind == _Kind.TORCH else _C.hyperparameter_names(kind)


def parameter_groups(model: torch.nn.Module, model_parameters: Any) -> list[Group]:
    """`model_parameters` (None: all of the model's; parameters; or groups as dicts) as a list of groups. Frozen ones
    cost nothing until they are unfrozen."""
    if model_parameters is None:
        return [{"params": list(model.parameters())}]
    if isinstance(model_parameters, torch.Tensor):
        raise ConfigError(
            "model_parameters is one tensor; expected an iterable of parameters or of groups (dicts with 'params')"
        )
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
    """The user's optimizer object (made here if it is a callable), checked and ready to be taken over. Raises
    ConfigError for one that cannot run here."""
    if callable(optimizer) and not isinstance(optimizer, torch.optim.Optimizer):
        plain = len(groups) == 1 and groups[0].keys() == {"params"}
        optimizer = optimizer(groups[0]["params"] if plain else groups)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"the optimizer is a {type(optimizer).__module__}.{type(optimizer).__qualname__}; expected a torch.optim.Optimizer, or "
            'write "optimizer": {"type": "AdamW"} in the config'
        )
    for index, group in enumerate(optimizer.param_groups):
        if group.get("differentiable"):
            raise ConfigError(
                f"param group {index} of the optimizer has differentiable=True, which this version does not have"
            )
    if client_kind(optimizer) == _Kind.TORCH:
        check_steps_alone(optimizer)
    elif any(state.get("step", 1) != 0 for state in optimizer.state.values()):
        raise ConfigError(
            f"the {type(optimizer).__name__} has taken steps already, and its moments would be lost: pass one that has taken none, and load its "
            "state with engine.optimizer.load_state_dict(...)"
        )
    else:
        optimizer.state.clear()  # Adagrad makes its sums in the constructor; the engine has its own
    return optimizer


def client_kind(optimizer: torch.optim.Optimizer) -> _C.OptimizerKind:
    """The engine's kind of an optimizer: TORCH, unless the engine has the same update itself."""
    special = any(group.get(option) for group in optimizer.param_groups for option in NOT_OF_ENGINE)
    if special:
        return _Kind.TORCH
    named = getattr(type(optimizer), "zeropage_kind", None)  # those of ops.py
    return named or _TORCH_KINDS.get(type(optimizer), _Kind.TORCH)


def group_defaults(kind: _C.OptimizerKind, params: _C.OptimizerParams) -> Group:
    """The hyperparameters of `params` under the names that torch.optim uses."""
    return {name: params[name] for name in _C.hyperparameter_names(kind)}


def _set_scheduled(group: Group, option: str, params: _C.OptimizerParams) -> None:
    """Writes the value that a schedule has set: into the group's tensor if it has one, and keeping betas that only the
    optimizer has."""
    value: Any = params[option]
    if isinstance(group[option], torch.Tensor):
        group[option].fill_(value)
    elif option == "betas":
        group[option] = type(group[option])((value[0], *group[option][1:]))
    else:
        group[option] = value


def _to_params(kind: _C.OptimizerKind, group: Group) -> _C.OptimizerParams:
    """Converts a group to the engine's hyperparameters. Missing options have their defaults. Raises UsageError for an
    option that the engine's own update does not have."""
    if kind != _Kind.TORCH and (switched_on := [option for option in NOT_OF_ENGINE if group.get(option)]):
        raise UsageError(
            f"a param group has {switched_on[0]}=True, which the engine's own update does not have: give it to the optimizer before "
            "zeropage.initialize, and PyTorch runs the optimizer"
        )
    params = _C.OptimizerParams()
    for option in _options(kind):
        value = group.get(option)
        if option == "betas" and value is not None:
            betas = list(value) if isinstance(value, (tuple, list)) else [value]  # optimizers have one to three
            default: Any = params[option]
            params[option] = (float(betas[0]), float(betas[1]) if len(betas) > 1 else default[1])
        elif value is not None:
            params[option] = value if isinstance(value, bool) else float(value)
    return params


def put_hyperparameters(group: Group, loaded: Group) -> None:
    """Writes into the existing dict, which schedulers and the user's object share; tensors stay the same objects."""
    for key, value in loaded.items():
        if isinstance(group.get(key), torch.Tensor) and key != "params":
            group[key].copy_(torch.as_tensor(value))
        elif key != "params":
            group[key] = value


def params_for_state(kind: _C.OptimizerKind, groups: list[Group]) -> _C.OptimizerParams:
    """The hyperparameters that determine the size and the initial values of the state. Raises ConfigError."""
    return _C.params_for_state([_to_params(kind, group) for group in groups])


def optimizer_facts(optimizer: "ZeropageOptimizer | None") -> str:
    """Facts that must be the same on all ranks, one per line, however the optimizer was given."""
    if optimizer is None:
        return "no optimizer"
    kind = type(optimizer.client or optimizer)
    lines = [f"optimizer: {optimizer.kind.name} {kind.__module__}.{kind.__qualname__}"]
    for index, group in enumerate(optimizer.param_groups):
        values = ", ".join(f"{key}={_fact(group[key])}" for key in sorted(group) if key != "params")
        lines.append(f"parameter group {index}: {values}")
    return "\n".join(lines)


def _fact(value: Any) -> str:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return repr(value.item())
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_fact, value))})"
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__


class LossScaleView:
    """The engine's loss scale, with the attributes of DeepSpeed's loss scaler."""

    def __init__(self, core: _C.Engine, config: _C.Config):
        self._core = core
        self.dynamic = config.precision == _C.Precision.FP16 and config.dynamic_loss_scale

    @property
    def loss_scale(self) -> float:
        return self._core.loss_scale

    cur_scale = loss_scale


class ZeropageOptimizer(torch.optim.Optimizer):
    """Hyperparameters of the engine's update. The state is in the engine: `state` stays empty, but `state_dict` has it.

    `param_groups` may be read and written as in torch.optim; written values are used from the next step on.
    """

    def __init__(
        self, kind: _C.OptimizerKind, groups: list[Group], defaults: Group, client: torch.optim.Optimizer | None = None
    ):
        """client: shares its groups and hooks with this one, so that a scheduler or a hook on either affects the
        engine."""
        self.kind = kind
        self.client = client
        self._core: Any = None  # _C.Engine, from attach on
        self.on_new_group: Callable[[], Callable[[], None]] | None = None  # the engine's method, by a weak reference
        super().__init__(groups, defaults)
        if client is not None:
            self.param_groups, self.defaults = client.param_groups, client.defaults
            for name in _HOOKS:
                setattr(self, name, getattr(client, name, getattr(self, name)))
        self.shards = ShardUpdate(client) if kind == _Kind.TORCH else None

    def __getattr__(self, name: str) -> Any:
        """Attributes and methods that only the user's own optimizer has, such as eval() and train()."""
        client = self.__dict__.get("client")
        if client is None or name.startswith("__"):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return getattr(client, name)

    def add_param_group(self, param_group: Group) -> None:
        """After `initialize`: as `engine.add_parameters`, collective, between updates."""
        super().add_param_group(param_group)
        if self.on_new_group is None:
            return
        take = self.on_new_group()
        try:
            take()
        except BaseException:
            self.param_groups.pop()
            raise

    def attach(self, core: _C.Engine, config: _C.Config) -> None:
        """Binds the engine that updates. A configured schedule has already set its first rates."""
        self._core, self._config = core, config
        if core.scheduled_lrs():
            self.pull_hyperparameters()
        if self.client is not None:
            self.client.step = _refuse_step
            self.client._opt_called = True  # schedulers check it
            for name in ("state_dict", "load_state_dict"):
                setattr(self.client, name, _of_engine(weakref.ref(self), name))

    def note_whole(
        self, parameters: list[tuple[str, torch.Tensor, int]], config: _C.Config, world_size: int
    ) -> set[str]:
        """See ShardUpdate.note_whole."""
        return set() if self.shards is None else self.shards.note_whole(parameters, config, world_size)

    def engine_groups(self) -> list[_C.OptimizerParams]:
        """The groups in the form for the engine."""
        return [_to_params(self.kind, group) for group in self.param_groups]

    def pull_hyperparameters(self) -> None:
        """Copies the values that a configured schedule has set."""
        for group, params in zip(self.param_groups, self._core.groups, strict=True):
            for option in set(_SCHEDULED).intersection(_options(self.kind)).intersection(group):
                _set_scheduled(group, option, params)

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Runs one micro step of the engine with the current hyperparameters. `engine.step()` calls it.

        Hooks run once per update, and not for a step that is skipped. Raises exceptions of the user's optimizer or of a
        hook before the update (a PeerError on the other ranks). Then no parameter has changed, the gradients are
        discarded, and training can continue.
        """
        if closure is not None:
            raise UsageError("step(closure) is not possible: the forward and backward run through the engine")
        self._core.groups = self.engine_groups()
        if self.shards is not None:
            try:
                self._core.step(self.shards)  # the client's step runs the hooks
            except BaseException:
                self.shards.undo()
                raise
        elif self._has_hooks():
            self._core.step(self._run_pre_hooks)
            if self._core.last_step.applied:
                self._run_post_hooks()
        else:
            self._core.step()
        if self._core.scheduled_lrs():
            self.pull_hyperparameters()

    def _has_hooks(self) -> bool:
        every = (torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks)
        return any((*every, self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks))

    def _run_pre_hooks(self, segments: list[Any]) -> None:
        """Runs the hooks as torch.optim.Optimizer does, before anything has changed. Values that they write into groups
        are used in this update."""
        for hook in (*torch_optimizer._global_optimizer_pre_hooks.values(), *self._optimizer_step_pre_hooks.values()):
            result = hook(self.client or self, (), {})
            if result not in (None, ((), {})):
                raise UsageError(
                    f"a step pre-hook of the optimizer returned {result!r}: the engine's step takes no arguments, return None"
                )
        self._core.groups = self.engine_groups()

    def _run_post_hooks(self) -> None:
        for hook in (*self._optimizer_step_post_hooks.values(), *torch_optimizer._global_optimizer_post_hooks.values()):
            hook(self.client or self, (), {})

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._core.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """As PyTorch's: whole tensors on the host, by position in the groups, without fp32 masters. Collective.

        Memory: the whole state, on every rank; `engine.save_checkpoint` needs none of it.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self.client or self)
        taken = take(self.param_groups, self._states())
        if self.shards is not None:
            taken["state"] |= self.shards.state.values_of_no_parameter()[""]
        for hook in self._optimizer_state_dict_post_hooks.values():
            taken = hook(self.client or self, taken) or taken
        return taken

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the result of `state_dict`, from any stage and world size, or a state dict of PyTorch's optimizer.
        Collective; the argument must be the same on all ranks.

        Raises UsageError for the state of another model or optimizer; then nothing has changed.
        """
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self.client or self, state_dict) or state_dict
        for loaded in state_dict["param_groups"]:
            _to_params(self.kind, loaded)  # refuses options that the engine's update does not have
        put(self.param_groups, self._states(), state_dict)
        if self.shards is not None:
            others = {key: value for key, value in state_dict["state"].items() if not isinstance(key, int)}
            self.shards.state.replace_values_of_no_parameter({"": others})
        for group, loaded in zip(self.param_groups, state_dict["param_groups"], strict=True):
            put_hyperparameters(group, loaded)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self.client or self)

    def _states(self) -> EngineState | WholeState:
        if self.shards is not None:
            return WholeState(self._core, self.shards.state, self.shards.communicator)
        return EngineState(self._core, self.kind, self._config)

    @property
    def overflow(self) -> bool:
        """Whether the last boundary step was skipped because a gradient was inf or nan."""
        return self._core.last_step.overflow

    @property
    def loss_scale(self) -> float:
        return self._core.loss_scale

    cur_scale = loss_scale  # DeepSpeed's name

    @property
    def loss_scaler(self) -> "LossScaleView":
        """The loss scale of fp16; without fp16 it is 1."""
        return LossScaleView(self._core, self._config)

    def needs_scaler(self) -> bool:
        """Whether a loss must be scaled: by `engine.backward(loss)`, or `engine.scale(loss).backward()`."""
        return self._config.precision == _C.Precision.FP16 or self._core.loss_scale != 1.0

    @property
    def leaf_parameters(self) -> dict[torch.nn.Module, list[torch.nn.Parameter]]:
        """The parameters of each module that `set_z3_leaf_modules` has marked, at stage 3."""
        return {module: list(module.parameters()) for module in get_z3_leaf_modules(self.parameter_offload.module)}

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer whose update runs: the user's if PyTorch runs it, otherwise this one."""
        return self if self.shards is None else self.shards.client


# torch.optim.Optimizer would run hooks around every call, skipped steps included.
ZeropageOptimizer.step.hooked = True  # type: ignore[attr-defined]


def _of_engine(optimizer: Callable[[], ZeropageOptimizer | None], name: str) -> Callable[..., Any]:
    """A method for the user's object, because its own method does not have the engine's state."""

    def call(*args: Any) -> Any:
        alive = optimizer()
        if alive is None:
            raise UsageError(f"{name}() was called on the optimizer of an engine that has ended")
        return getattr(alive, name)(*args)

    return call


def _refuse_step(*args: Any, **kwargs: Any) -> None:
    raise UsageError(
        "optimizer.step() was called on an optimizer that an engine runs: engine.step() updates, leave the other call out"
    )


_refuse_step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # schedulers would wrap it to count its calls


def name_parameters(model: torch.nn.Module, groups: Iterable[Group]) -> list[tuple[str, torch.Tensor, int]]:
    """Every parameter once, as (name, parameter, group); group -1: in none.

    Parameters of groups that are not in the model follow after those of the model. Frozen parameters that wrap other
    tensors are left out (wrapped_tensors.py). Raises ConfigError for such a parameter that is not frozen.
    """
    groups = list(groups)
    group_of = {id(p): index for index, group in enumerate(groups) for p in group["params"]}
    named = list(model.named_parameters())
    named += name_others(groups, {id(parameter): name for name, parameter in named})
    kept = [(name, parameter) for name, parameter in named if parameter.requires_grad or not is_wrapped(parameter)]
    for name, parameter in kept:
        require_plain(name, parameter)
    return [(name, parameter, group_of.get(id(parameter), -1)) for name, parameter in kept]
