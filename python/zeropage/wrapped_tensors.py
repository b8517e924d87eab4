"""Parameters that are tensor subclasses around other tensors (quantized weights of torchao). Other tensors own their
storage, so the engine cannot put them into pages. Frozen ones stay whole and unchanged on every rank, and their inner
tensors are treated like buffers.
"""

from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .errors import ConfigError


def is_wrapped(parameter: torch.Tensor) -> bool:
    return is_traceable_wrapper_subclass(parameter)


def inner_tensors(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors in a wrapped one, named after its attributes."""
    if not is_wrapped(tensor):
        yield name, tensor
        return
    for attribute in tensor.__tensor_flatten__()[0]:
        yield from inner_tensors(f"{name}.{attribute}", getattr(tensor, attribute))


def inner_of_module(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The inner tensors of all wrapped parameters of a model."""
    for name, parameter in module.named_parameters():
        if is_wrapped(parameter):
            yield from inner_tensors(name, parameter)


def require_plain(name: str, parameter: torch.Tensor) -> None:
    """Raises ConfigError for a wrapped parameter; the engine cannot train one."""
    if is_wrapped(parameter):
        raise ConfigError(
            f"parameter '{name}' is a {type(parameter).__name__}, a wrapper of other tensors, which the engine cannot train: freeze it "
            "(requires_grad_(False)) and train adapters, or make it a plain tensor"
        )
