"""`engine.optimizer.parameter_offload` for programs that remove DeepSpeed's hooks from a model for a generation and add
them again afterwards.

Operators gather the parameters that they use, so there are no hooks: the lists are empty, and adding hooks does
nothing.
"""

from collections.abc import Iterator
from typing import Any

import torch

from ..module_view import ModuleView


class ParameterOffload:
    """The parameter_offload of an engine at stage 3."""

    def __init__(self, module: torch.nn.Module):
        self.module = _WithoutExternalParameters(module)
        self.forward_hooks: list[Any] = []
        self.backward_hooks: list[Any] = []

    def _register_deepspeed_module(self, module: torch.nn.Module, count: Any = None) -> None:
        """Does nothing: there are no hooks to add."""

    _register_hooks_recursively = _register_deepspeed_module  # its older name


class _WithoutExternalParameters(ModuleView):
    """The module, with an empty list of external parameters: it need not name parameters of other modules that it
    uses."""

    def ds_external_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return iter(())
