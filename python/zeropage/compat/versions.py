"""Versions with DeepSpeed's names."""

import re

import torch

from ..alias import VERSION as version  # noqa: F401
from ..errors import UsageError

version_major, version_minor, version_patch = (int(part) for part in version.split("."))
git_hash = git_branch = "zeropage"
torch_info = {
    "version": ".".join(torch.__version__.split(".")[:2]),
    "cuda_version": torch.version.cuda,
    "hip_version": torch.version.hip,
}


def required_torch_version(min_version: str | float | None = None, max_version: str | float | None = None) -> bool:
    """Whether torch is at least, or at most, of a version: "2.1", 2.1, "2.1.0"."""
    if (min_version is None) == (max_version is None):
        raise UsageError("required_torch_version takes min_version or max_version; give one of them")
    present = _numbers(torch.__version__)
    if min_version is not None:
        return present >= _numbers(min_version)
    return max_version is not None and present <= _numbers(max_version)


def _numbers(given: str | float) -> tuple[int, ...]:
    numbers = [int(number) for number in re.findall(r"\d+", str(given).split("+")[0])[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))
