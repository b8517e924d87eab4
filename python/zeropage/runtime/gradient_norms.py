"""Norms of gradients and overflow checks with the names of `deepspeed.runtime.utils`, for programs that clip gradients
themselves.

The engine clips by itself ("gradient_clipping") and reports its norm (`engine.get_global_grad_norm()`). These functions
get whole tensors, and communicate only so that all ranks get the same result.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from ..errors import UsageError
from ..parameter_holders import wait_for_device_of


def get_global_norm(norm_list: list[float]) -> float:
    """The 2-norm of norms of parts."""
    return sum(norm * norm for norm in norm_list) ** 0.5


def get_weight_norm(parameters: torch.Tensor | Iterable[torch.Tensor], norm_type: float = 2, mpu: Any = None) -> float:
    """The norm of all of these tensors; -1 if it is inf or nan. mpu: must be None."""
    tensors = _tensors(parameters, mpu)
    return _finite_or_minus_one(_norm(tensors, norm_type), tensors)


def get_grad_norm(parameters: torch.Tensor | Iterable[torch.Tensor], norm_type: float = 2, mpu: Any = None) -> float:
    """The same for the gradients of these parameters; parameters without a gradient are ignored."""
    parameters = _tensors(parameters, mpu)
    return _finite_or_minus_one(_norm(_gradients(parameters, mpu), norm_type), parameters)


def clip_grad_norm_(
    parameters: torch.Tensor | Iterable[torch.Tensor], max_norm: float, norm_type: float = 2, mpu: Any = None
) -> torch.Tensor:
    """Scales the gradients so that their norm is at most `max_norm`; returns the norm before. Collective if torch's
    default group exists: the norm is the mean of all ranks' norms, so that ranks with different gradients use the same
    factor."""
    gradients = _gradients(parameters, mpu)
    norm = _norm(gradients, norm_type)
    if dist.is_initialized():
        norm = norm / dist.get_world_size()
        dist.all_reduce(norm)
    torch.nn.utils.clip_grads_with_norm_([_Holder(gradient) for gradient in gradients], max_norm, norm)
    return norm


def get_global_norm_of_tensors(
    input_tensors: Iterable[torch.Tensor],
    norm_type: float = 2,
    mpu: Any = None,
    use_graph: bool = False,
    moe_ep_group: Any = None,
) -> float:
    """The norm of all of these tensors; -1 if it is inf or nan. mpu, moe_ep_group: must be None; use_graph:
    accepted."""
    if moe_ep_group is not None:
        raise UsageError("moe_ep_group: expert parallelism is not built; leave it out")
    return get_weight_norm(input_tensors, norm_type, mpu)


def clip_tensors_by_global_norm(
    input_tensors: Iterable[torch.Tensor],
    max_norm: float = 1.0,
    global_norm: float | None = None,
    mpu: Any = None,
    eps: float = 1e-6,
    use_graph: bool = False,
) -> float:
    """Scales the tensors so that their norm (`global_norm`, if it is given) is at most `max_norm`; returns the norm
    before."""
    tensors = _tensors(input_tensors, mpu)
    norm = get_weight_norm(tensors) if global_norm is None else global_norm
    coefficient = max_norm / (norm + eps)
    if 0 <= coefficient < 1:
        torch._foreach_mul_(tensors, coefficient)
    return norm


class CheckOverflow:
    """Looks for inf and nan in gradients, on all ranks if torch's default group exists."""

    def __init__(
        self,
        param_groups: Iterable[Iterable[torch.Tensor]] | None = None,
        mpu: Any = None,
        zero_reduce_scatter: bool = False,
        deepspeed: Any = None,
    ):
        """param_groups: lists of parameters; mpu: must be None; zero_reduce_scatter, deepspeed: accepted, without
        effect."""
        if mpu is not None:
            raise UsageError("mpu is not available in this version: leave it out")
        self.params = [parameter for group in param_groups or () for parameter in group]

    def check(self, param_groups: Iterable[Iterable[torch.Tensor]] | None = None) -> bool:
        """Whether a gradient of these parameters, on any rank, has such an element. Collective."""
        return self.has_overflow(self.params if param_groups is None else [p for group in param_groups for p in group])

    def has_overflow(self, params: Iterable[torch.Tensor], has_moe_params: bool | None = None) -> bool:
        params = list(params)
        return _on_any_rank(self.has_overflow_serial(params), params)

    def has_overflow_serial(self, params: Iterable[torch.Tensor]) -> bool:
        """The same for this rank only."""
        params = list(params)
        # The difference is nan where the value is inf or nan, else 0.
        found = [(gradient - gradient).ne(0).any() for gradient in _gradients(params, None)]
        return bool(_on_host(torch.stack(found).any(), params)) if found else False

    def check_using_norm(self, norm_group: Iterable[float], reduce_overflow: bool = True) -> bool:
        """Whether one of these norms is -1 on any rank, which means overflow in `get_weight_norm`. Collective."""
        return _on_any_rank(-1 in list(norm_group), self.params)

    @staticmethod
    def _has_inf_or_nan(x: torch.Tensor, i: Any = None) -> bool:
        return not bool(torch.isfinite(x).all())


class _Holder:
    """An object with a gradient as attribute, for torch's clipping."""

    def __init__(self, gradient: torch.Tensor):
        self.grad = gradient


def _tensors(tensors: torch.Tensor | Iterable[torch.Tensor], mpu: Any) -> list[torch.Tensor]:
    if mpu is not None:
        raise UsageError("mpu is not available in this version: leave it out")
    return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)


def _gradients(parameters: torch.Tensor | Iterable[torch.Tensor], mpu: Any) -> list[torch.Tensor]:
    return [parameter.grad for parameter in _tensors(parameters, mpu) if parameter.grad is not None]


def _norm(tensors: list[torch.Tensor], norm_type: float) -> torch.Tensor:
    """The norm, in fp32, so that squares of 16-bit values do not overflow."""
    return torch.nn.utils.get_total_norm([tensor.detach().float() for tensor in tensors], norm_type)


def _on_host(value: torch.Tensor, of: Iterable[torch.Tensor]) -> float:
    """of: the parameters whose engine waits for it."""
    wait_for_device_of(of, "a value that was computed from gradients")
    return value.item()


def _finite_or_minus_one(norm: torch.Tensor, of: Iterable[torch.Tensor]) -> float:
    value = _on_host(norm, of)
    return value if math.isfinite(value) else -1.0


def _on_any_rank(here: bool, of: Iterable[torch.Tensor]) -> bool:
    if not dist.is_initialized():
        return here
    from ..compat.accelerator import get_accelerator

    flag = torch.tensor([int(here)], device=get_accelerator().current_device_name())
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(_on_host(flag, of))
