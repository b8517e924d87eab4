"""Optimizer objects with DeepSpeed's names. The engine takes them over and runs its own update of the same kind.

Outside an engine Adam and Adagrad step as torch's do; Lion and Lamb, which torch does not have, then raise UsageError.
"""

from collections.abc import Callable
from typing import Any

import torch

from . import _C
from .errors import ConfigError, UsageError

_Kind = _C.OptimizerKind


def _without_amsgrad(amsgrad: bool) -> None:
    if amsgrad:
        raise ConfigError("amsgrad=True: use torch.optim.AdamW(..., amsgrad=True), which the engine runs, too")


class FusedAdam(torch.optim.Adam):
    """Adam, or AdamW with `adam_w_mode`. Arguments as of torch.optim.AdamW; `set_grad_none` is accepted for
    compatibility."""

    zeropage_kind = _Kind.ADAM

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        set_grad_none: bool = True,
    ):
        _without_amsgrad(amsgrad)
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled_weight_decay=adam_w_mode
        )
        for group in (self.defaults, *self.param_groups):
            group["bias_correction"] = bias_correction

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As torch's. Raises UsageError without bias correction, which only the engine can leave out."""
        if not all(group["bias_correction"] for group in self.param_groups):
            raise UsageError(
                "bias_correction=False works inside an engine only: pass the optimizer to zeropage.initialize"
            )
        return super().step(closure)


class DeepSpeedCPUAdam(FusedAdam):
    """The same with the name and the order of arguments of DeepSpeed's optimizer for state in host memory."""

    def __init__(
        self,
        model_params: Any,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        adamw_mode: bool = True,
        fp32_optimizer_states: bool = True,
    ):
        """fp32_optimizer_states: False is refused; use zeropage.optimizer_state_dtype in the configuration for smaller
        moments."""
        if not fp32_optimizer_states:
            raise ConfigError(
                'fp32_optimizer_states=False: write "zeropage": {"optimizer_state_dtype": "bf16"} in the config'
            )
        super().__init__(model_params, lr, bias_correction, betas, eps, adamw_mode, weight_decay, amsgrad)


class DeepSpeedCPUAdagrad(torch.optim.Adagrad):
    """torch.optim.Adagrad with DeepSpeed's default for eps. `amsgrad` is not an option of Adagrad."""

    zeropage_kind = _Kind.ADAGRAD

    def __init__(
        self, model_params: Any, lr: float = 1e-2, eps: float = 1e-10, weight_decay: float = 0.0, amsgrad: bool = False
    ):
        _without_amsgrad(amsgrad)
        super().__init__(model_params, lr=lr, eps=eps, weight_decay=weight_decay)


class _EngineOnly(torch.optim.Optimizer):
    """Hyperparameters of an update that only the engine has."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        raise UsageError(
            f"{type(self).__name__} works inside an engine only: pass it to zeropage.initialize and call engine.step()"
        )


class FusedLion(_EngineOnly):
    """Lion: the sign of a moving average, with decoupled weight decay. `set_grad_none` is accepted for
    compatibility."""

    zeropage_kind = _Kind.LION

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        set_grad_none: bool = True,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})


class DeepSpeedCPULion(FusedLion):
    """The same under its other name."""

    def __init__(
        self, model_params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0
    ):
        super().__init__(model_params, lr, betas, weight_decay)


class FusedLamb(_EngineOnly):
    """Lamb: Adam with each parameter's step scaled by its norm."""

    zeropage_kind = _Kind.LAMB

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        eps_inside_sqrt: bool = False,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        max_coeff: float = 10.0,
        min_coeff: float = 0.01,
        amsgrad: bool = False,
    ):
        _without_amsgrad(amsgrad)
        if max_grad_norm:
            raise ConfigError(
                'max_grad_norm of Lamb: write "gradient_clipping" in the config, which clips the norm of all gradients'
            )
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
        }
        super().__init__(
            params, {**options, "max_coeff": max_coeff, "min_coeff": min_coeff, "eps_inside_sqrt": eps_inside_sqrt}
        )
