"""What a model says of its types, and the types of its buffers."""

import re
from collections.abc import Collection, Iterator

import torch
from torch.nn.modules.batchnorm import _NormBase

from . import _C

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def declared_in_fp32(module: torch.nn.Module) -> list[str]:
    """Names of what stays fp32 in 16 bit: as models of transformers declare it, and norms with running statistics, which need fp32 and
    take inputs of 16 bit."""
    names: list[str] = []
    for _, child in module.named_modules():
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
            names += getattr(child, attribute, None) or ()
    names += [re.escape(prefix) for prefix, _ in _norms(module) if prefix]
    return list(dict.fromkeys(names))


def cast_buffers(module: torch.nn.Module, config: _C.Config, in_fp32: Collection[str], parameter_dtype: torch.dtype) -> None:
    """Floating-point buffers get data_types.buffer_dtype; without it they keep their type. Running statistics follow the parameters beside
    them, which torch's kernels want. in_fp32: names of parameters that are; parameter_dtype: of the others."""
    follow = {
        id(buffer): torch.float32 if _join(prefix, "weight") in in_fp32 else parameter_dtype
        for prefix, norm in _norms(module)
        if norm.affine
        for buffer in norm.buffers(recurse=False)
    }
    for buffer in module.buffers():
        _C.settle(buffer)
        if buffer.is_floating_point():
            wanted = buffer.dtype if config.buffer_dtype is None else _DTYPES[config.buffer_dtype]
            buffer.data = buffer.data.to(follow.get(id(buffer), wanted))


def _norms(module: torch.nn.Module) -> Iterator[tuple[str, _NormBase]]:
    return ((name, child) for name, child in module.named_modules() if isinstance(child, _NormBase) and child.track_running_stats)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
