"""What `engine.optimizer.parameter_offload` is to programs that take DeepSpeed's hooks off a model round a generation
and put them back.

Operators fetch the parameters that they touch, so there are no hooks: the lists are empty, and putting them back does
nothing.
"""

from collections.abc import Iterator
from typing import Any

import torch

from ..module_view import ModuleView


class ParameterOffload:
    """Of an engine at stage 3."""

    def __init__(self, module: torch.nn.Module):
        self.module = _WithoutExternalParameters(module)
        self.forward_hooks: list[Any] = []
        self.backward_hooks: list[Any] = []

    def _register_deepspeed_module(self, module: torch.nn.Module, count: Any = None) -> None:
        """Does nothing: there are no hooks to put back."""

    _register_hooks_recursively = _register_deepspeed_module  # its older name


class _WithoutExternalParameters(ModuleView):
    """The module, which answers that it uses no parameters of other modules that it would have to name."""

    def ds_external_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return iter(())
