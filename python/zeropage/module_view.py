"""A module that represents another one: same parameters, same names, same state dict."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from .errors import UsageError


class ModuleView(torch.nn.Module):
    """All methods of torch.nn.Module about its content refer to `module`, without a prefix in the names."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.__dict__["module"] = module  # not a child: children would get the prefix "module."

    def __getattr__(self, name: str) -> Any:
        module = self.__dict__.get("module")
        if module is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        try:
            return getattr(module, name)
        except AttributeError:
            message = f"neither {type(self).__name__} nor its module {type(module).__name__} has the attribute {name!r}"
            raise AttributeError(message) from None

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.module)})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.module!r})"

    def train(self, mode: bool = True) -> "ModuleView":
        self.training = mode
        self.module.train(mode)
        return self

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return self.module.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
        return self.module.named_buffers(*args, **kwargs)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.nn.Module]]:
        return self.module.named_modules(*args, **kwargs)

    def named_children(self) -> Iterator[tuple[str, torch.nn.Module]]:
        return self.module.named_children()

    def get_submodule(self, target: str) -> torch.nn.Module:
        return self.module.get_submodule(target)

    def apply(self, fn: Callable[[torch.nn.Module], None]) -> "ModuleView":
        self.module.apply(fn)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "ModuleView":
        self.module.requires_grad_(requires_grad)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.load_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "ModuleView":
        """Called by to(), half(), cuda(): allowed if nothing changes."""
        for name, parameter in self.named_parameters():
            probe = fn(torch.empty(0, dtype=parameter.dtype, device=parameter.device))
            if (probe.dtype, probe.device) != (parameter.dtype, parameter.device):
                raise UsageError(
                    f"{name} is {parameter.dtype} on {parameter.device}, and the engine does not change this; requested: {probe.dtype} on "
                    f"{probe.device}. Choose the precision in the config, and the device by the launcher"
                )
        return self
