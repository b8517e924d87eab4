"""The types that a model declares, and the types of its buffers."""

import re
from collections.abc import Collection, Iterator

import torch
from torch.nn.modules.batchnorm import _NormBase

from . import _C


def _declared_in_fp32(module: torch.nn.Module) -> list[str]:
    """Names of the modules that stay fp32 in a 16-bit model: those that models of transformers declare, and norms with
    running statistics, which need fp32 and accept 16-bit inputs."""
    names: list[str] = []
    for _, child in module.named_modules():
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
            names += getattr(child, attribute, None) or ()
    names += [re.escape(prefix) for prefix, _ in _norms(module) if prefix]
    return list(dict.fromkeys(names))


def parameter_dtype(config: _C.Config, otherwise: torch.dtype) -> torch.dtype:
    """The type of parameters by the precision; `otherwise` if the precision is fp32."""
    return {_C.Precision.BF16: torch.bfloat16, _C.Precision.FP16: torch.float16}.get(config.precision, otherwise)


def settle_types(
    module: torch.nn.Module,
    config: _C.Config,
    parameters: list[tuple[str, torch.Tensor, int]],
    rank: int,
    added: bool = False,
) -> set[str]:
    """Names of the parameters that are fp32 with any precision. Sets the precision if the configuration names none.
    added: whether they are added after the first ones."""
    named = [(name, parameter) for name, parameter, _ in parameters]
    in_fp32, warning = _C.settle_types(config, named, _declared_in_fp32(module), added)
    if warning and rank == 0:
        _C.log_warn(warning)
    return in_fp32


def cast_buffers(module: torch.nn.Module, config: _C.Config, in_fp32: Collection[str]) -> None:
    """Floating-point buffers get data_types.buffer_dtype; without it they keep their type. Running statistics get the
    type of their module's parameters, because torch's kernels need equal types. in_fp32: names of fp32 parameters."""
    types = _C.DataTypes(config)
    follow = {
        id(buffer): torch.float32 if _join(prefix, "weight") in in_fp32 else types.parameters
        for prefix, norm in _norms(module)
        if norm.affine
        for buffer in norm.buffers(recurse=False)
    }
    for buffer in module.buffers():
        _C.settle(buffer)
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(follow.get(id(buffer), types.buffers or buffer.dtype))


def _norms(module: torch.nn.Module) -> Iterator[tuple[str, _NormBase]]:
    return (
        (name, child)
        for name, child in module.named_modules()
        if isinstance(child, _NormBase) and child.track_running_stats
    )


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
