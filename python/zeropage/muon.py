"""Muon for matrices, AdamW for the rest: the optimizer "Muon" of the configuration. The formula is in session/muon.h.
The engine gives the optimizer whole parameters at all stages, each on one rank.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from . import _C
from .errors import ConfigError

Group = dict[str, Any]

# Hyperparameters of one half that groups of the other do not have.
_MUON_KEYS = ("momentum", "nesterov", "ns_method", "ns_steps", "ns_dtype", "adjust_lr_fn")
_ADAM_KEYS = ("betas", "eps", "adam_w_mode")
_CONVOLUTIONS = torch.nn.modules.conv._ConvNd
# The number of heads in the rows of these layers, by keys of a model's configuration.
_HEADS = {
    "q_proj.weight": "num_attention_heads",
    "k_proj.weight": "num_key_value_heads",
    "v_proj.weight": "num_key_value_heads",
}


class Muon(torch.optim.Optimizer):
    """Made by `configured`. Its groups have "use_muon", and "matrices": the number of matrices that are stacked in a
    parameter of the group; 0: by its shape."""

    def __init__(self, groups: list[Group]):
        super().__init__(groups, {})
        # Of a parameter's state, while it is updated; the engine replaces it if state is on a drive.
        self.in_memory: Callable[[torch.nn.Parameter], AbstractContextManager[None]] = lambda parameter: nullcontext()

    @classmethod
    def configured(cls, params: Group, groups: list[Group], model: torch.nn.Module) -> "Muon":
        """params: the section optimizer.params. Each group is split into its two halves. Raises ConfigError."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        kernels = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, _CONVOLUTIONS)
            for parameter in module.parameters(False)
        }
        split: dict[tuple[int, bool, int], list[torch.Tensor]] = {}
        for index, group in enumerate(groups):
            for parameter in group["params"]:
                name = names.get(id(parameter), "")
                use_muon = takes_muon(name, parameter)
                matrices = 0
                if use_muon and params["per_head_muon"]:
                    matrices = heads_of(name, parameter, getattr(model, "config", None))
                elif use_muon and id(parameter) in kernels:
                    matrices = 1
                split.setdefault((index, not use_muon, matrices), []).append(parameter)
        if params["per_head_muon"] and not any(matrices > 0 for _, _, matrices in split):
            raise ConfigError(
                "optimizer.params.per_head_muon is true, but the number of heads of the parameters is unknown: expected parameters named q_proj.weight, "
                "k_proj.weight or v_proj.weight of a model whose config has num_attention_heads, or an attribute muon_heads of parameters"
            )
        return cls([_half(params, groups[key[0]], not key[1], key[2], split[key]) for key in sorted(split)])

    @staticmethod
    def takes_whole(group: Group) -> bool:
        """True for Muon's half; AdamW's half is elementwise."""
        return group["use_muon"]

    @staticmethod
    def kept_bytes(group: Group) -> int:
        """Bytes of state per element of the group's parameters: the momentum, or both moments, in fp32."""
        return 4 if group["use_muon"] else 8

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            update = self._muon_step if group["use_muon"] else self._adam_step
            for parameter in group["params"]:
                if parameter.grad is not None:
                    with self.in_memory(parameter):
                        update(parameter, group)

    def _muon_step(self, parameter: torch.Tensor, group: Group) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        options = {key: group[key] for key in (*_MUON_KEYS, "weight_decay", "matrices")}
        options |= {"lr": float(group["lr"]), "ns_dtype": group["ns_dtype"] or ""}
        _C.muon_step(parameter, gradient, state["momentum_buffer"], **options)

    def _adam_step(self, parameter: torch.Tensor, group: Group) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["step"] += 1
        _C.adam_step(
            parameter,
            gradient,
            state["exp_avg"],
            state["exp_avg_sq"],
            step=state["step"].item(),
            lr=float(group["lr"]),
            weight_decay=group["weight_decay"],
            **{key: group[key] for key in _ADAM_KEYS},
        )


def takes_muon(name: str, parameter: torch.Tensor) -> bool:
    """The parameter's own `use_muon`; without one, whether it has two or more dimensions and is neither an embedding
    nor the output layer."""
    own = getattr(parameter, "use_muon", None)
    return bool(own) if own is not None else _C.takes_muon(name, parameter.dim())


def heads_of(name: str, parameter: torch.Tensor, config: Any) -> int:
    """The number of attention heads with separate rows in a parameter; 0: none, or unknown. Raises ConfigError when the
    rows are not divisible."""
    heads = getattr(parameter, "muon_heads", None)
    for ending, count in _HEADS.items():
        if heads is None and name.endswith(ending):
            heads = getattr(config, count, None) or getattr(config, "num_attention_heads", None)
    if heads and (parameter.dim() != 2 or parameter.shape[0] % heads != 0):
        raise ConfigError(
            f"optimizer.params.per_head_muon: parameter '{name}' {list(parameter.shape)} cannot be divided into {heads} heads with the same number of rows"
        )
    return heads or 0


def _half(params: Group, group: Group, use_muon: bool, matrices: int, parameters: list[torch.Tensor]) -> Group:
    """One half of a group. Options of the group have priority over those of the section."""
    shared, own = params["lr"], params["muon_lr" if use_muon else "adam_lr"]
    default = 0.02 if use_muon else 3e-4
    lr = next(each for each in (own, shared, default) if each is not None)
    options = {key: params[key] for key in (_MUON_KEYS if use_muon else _ADAM_KEYS)}
    half = {"lr": lr, "weight_decay": params["weight_decay"], **options, "use_muon": use_muon}
    if use_muon:
        half["matrices"] = matrices
    return {**half, **{key: value for key, value in group.items() if key != "params"}, "params": parameters}
