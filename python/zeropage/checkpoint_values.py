"""Converts Python values to JSON and tensors, without pickle: for `client_state`, schedulers and parameter groups.

None, bool, int, float, str, list, tuple, dict and tensors; numbers of numpy become numbers of Python. Values that JSON
does not have are written as a dict with one key: {"tuple": [...]}, {"dict": [[key, value], ...]}, {"tensor": name},
{"number": "inf"}.
"""

import math
from typing import Any

import torch

from .errors import CheckpointError

Tensors = dict[str, torch.Tensor]
_MAX_JSON_INTEGER = 2**63 - 1


def encode(value: Any, tensors: Tensors, where: str) -> Any:
    """`value` as JSON; adds its tensors to `tensors` as host/0, host/1, ... Raises CheckpointError with the place of a
    value that cannot be saved."""
    if isinstance(value, torch.Tensor):
        name = f"host/{len(tensors)}"
        tensors[name] = value
        return {"tensor": name}
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) <= _MAX_JSON_INTEGER else {"number": str(int(value))}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"number": repr(float(value))}
    if isinstance(value, (list, tuple)):
        items = [encode(item, tensors, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, dict):
        pairs = [
            [encode(k, tensors, f"a key of {where}"), encode(v, tensors, f"{where}[{k!r}]")] for k, v in value.items()
        ]
        return {"dict": pairs}
    raise CheckpointError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot hold: make it of numbers, "
        "strings, lists, tuples, dicts and tensors (checkpoints contain no pickle)"
    )


def decode(value: Any, read_tensor: Any) -> Any:
    """The value that was given to `encode`. `read_tensor(name)` reads a tensor. Raises CheckpointError."""
    if isinstance(value, list):
        return [decode(item, read_tensor) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (kind, content), *_ = value.items()
        if kind == "tensor" and isinstance(content, str):
            return read_tensor(content)
        if kind == "number" and isinstance(content, str):
            return float(content) if content in ("inf", "-inf", "nan") else int(content)
        if kind == "tuple" and isinstance(content, list):
            return tuple(decode(item, read_tensor) for item in content)
        if (
            kind == "dict"
            and isinstance(content, list)
            and all(isinstance(pair, list) and len(pair) == 2 for pair in content)
        ):
            return {decode(k, read_tensor): decode(v, read_tensor) for k, v in content}
    raise CheckpointError(f"the checkpoint contains an invalid value: {str(value)[:200]}")
