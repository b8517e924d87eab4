"""Full and local values of parameters in fp32, their mean gradients, and the optimizer's state, at every stage:
DeepSpeed's `safe_*`.

"Full" has the parameter's shape and is the same on all ranks; these functions are collective: every rank calls them,
for the same parameters in the same order. "Local" is flat and has the elements that this rank updates, all of them at
stage 0. Gradients exist between the backward that completes an accumulation window and `step()`: the mean over ranks
and micro batches, without the loss scale. Getters return None if there is no value: the parameter is frozen, has no
gradient now, or no state yet. The next step uses all values that were set.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from .._C import ValueKind
from ..errors import UsageError
from ..parameter_holders import engine_and_optimizer


def safe_get_full_fp32_param(param: torch.nn.Parameter) -> torch.Tensor | None:
    """A new tensor [param.shape] with the fp32 value: that of the master, if there is one."""
    return _core(param).full_value(param, ValueKind.PARAMETER)


def safe_set_full_fp32_param(param: torch.nn.Parameter, value: torch.Tensor) -> None:
    """value: [param.shape], the same on all ranks. The parameter becomes this value, rounded to its type; the master
    has it exactly."""
    _core(param).set_full_value(param, value, ValueKind.PARAMETER)


def safe_get_full_grad(param: torch.nn.Parameter) -> torch.Tensor | None:
    """A new fp32 tensor [param.shape] with the mean gradient."""
    return _core(param).full_value(param, ValueKind.GRADIENT)


def safe_set_full_grad(param: torch.nn.Parameter, value: torch.Tensor) -> None:
    """value: [param.shape], the same on all ranks. Raises UsageError while no window is complete."""
    _core(param).set_full_value(param, value, ValueKind.GRADIENT)


def safe_get_full_optimizer_state(param: torch.nn.Parameter, optim_state_key: str) -> torch.Tensor | None:
    """A new fp32 tensor [param.shape] with an elementwise state ("exp_avg"). Raises UsageError for a state that the
    optimizer does not have."""
    core, states = _core_and_states(param)
    if states is None:
        return core.full_value(param, ValueKind.STATE, optim_state_key)
    if states.sees_whole(param):
        return states.full(param, optim_state_key)
    piece = states.local(param, optim_state_key)
    # Ranks without elements of the parameter cannot know whether it has the state.
    there = core.assemble_value(param, _elements(core, param, piece is not None))
    if not there.all():
        return None
    return core.assemble_value(param, _elements(core, param, 0) if piece is None else piece)


def safe_set_full_optimizer_state(param: torch.nn.Parameter, value: torch.Tensor, optim_state_key: str) -> None:
    """value: [param.shape], the same on all ranks. Raises UsageError for a state that does not exist."""
    core, states = _core_and_states(param)
    if states is None:
        core.set_full_value(param, value, ValueKind.STATE, optim_state_key)
    else:
        states.set_full(param, optim_state_key, value, core)


def safe_get_local_fp32_param(param: torch.nn.Parameter) -> torch.Tensor | None:
    """This rank's elements of the fp32 value, flat."""
    return _core(param).local_value(param, ValueKind.PARAMETER)


def safe_set_local_fp32_param(param: torch.nn.Parameter, value: torch.Tensor) -> None:
    """value: as many elements as `safe_get_local_fp32_param` returns. Collective, unlike the other local functions."""
    _core(param).set_local_value(param, value, ValueKind.PARAMETER)


def safe_get_local_grad(param: torch.nn.Parameter) -> torch.Tensor | None:
    """This rank's elements of the mean gradient, flat in fp32."""
    return _core(param).local_value(param, ValueKind.GRADIENT)


def safe_set_local_grad(param: torch.nn.Parameter, value: torch.Tensor) -> None:
    """value: as many elements as `safe_get_local_grad` returns."""
    _core(param).set_local_value(param, value, ValueKind.GRADIENT)


def safe_get_local_optimizer_state(param: torch.nn.Parameter, optim_state_key: str) -> torch.Tensor | None:
    """This rank's elements of a state, flat in fp32."""
    core, states = _core_and_states(param)
    if states is None:
        return core.local_value(param, ValueKind.STATE, optim_state_key)
    piece = states.local(param, optim_state_key)
    return None if piece is None else piece.to(torch.float32, copy=True)


def safe_set_local_optimizer_state(param: torch.nn.Parameter, value: torch.Tensor, optim_state_key: str) -> None:
    """value: as many elements as `safe_get_local_optimizer_state` returns."""
    core, states = _core_and_states(param)
    if states is None:
        core.set_local_value(param, value, ValueKind.STATE, optim_state_key)
    else:
        states.set_local(param, optim_state_key, value)


def safe_get_full_model_grads(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """`safe_get_full_grad` of each parameter that has one, by name. Collective. Memory: all gradients in fp32."""
    gradients = {name: safe_get_full_grad(parameter) for name, parameter in model.named_parameters()}
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


def safe_update_full_grad_vectorized(
    param_list: Iterable[torch.nn.Parameter], update_func: Callable[[torch.Tensor, torch.nn.Parameter], torch.Tensor]
) -> None:
    """Sets the mean gradient of each parameter to `update_func(gradient, parameter)`; those without a gradient are left
    out.

    Handles one parameter after the other, so that no rank ever holds more than one full gradient.
    """
    for param in param_list:
        gradient = safe_get_full_grad(param)
        if gradient is not None:
            safe_set_full_grad(param, update_func(gradient, param))


def _core(param: torch.nn.Parameter) -> Any:
    return _core_and_states(param)[0]


def _core_and_states(param: torch.nn.Parameter) -> tuple[Any, Any]:
    """The engine's C++ side, and the object with the state of an optimizer of torch; None: the engine has the state."""
    core, optimizer = engine_and_optimizer(param)
    if core is None:
        raise UsageError(
            "expected a parameter of a model that `zeropage.initialize` was given, and whose engine still exists"
        )
    shards = None if optimizer is None else optimizer.shards
    return core, None if shards is None else shards.state


def _elements(core: Any, param: torch.nn.Parameter, value: float) -> torch.Tensor:
    """A tensor with as many elements as this rank updates."""
    return torch.full_like(core.piece_of_value(param, torch.zeros(param.shape, device=param.device)), float(value))
