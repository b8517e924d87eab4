"""The architectures of timm: of each of its modules the smallest model among those that are called small."""

import re
from collections.abc import Iterator
from typing import Any

import timm
import torch
from torch import nn

SMALL = r"^test_|atto|femto|pico|nano|tiny|xxs|_t0|_n0|_s0|_050|_035|mini|_xs|small|_18|10t|_s$|_b0|_a0|_c1"
LOOKED_AT = 6
# Arguments that make a model smaller; a model takes some of them, or none.
SIZES: tuple[dict[str, Any], ...] = (
    {"embed_dim": 32, "depth": 2, "num_heads": 2},
    {"embed_dim": 32, "num_heads": (1, 2, 2, 4), "depths": (1, 1, 1, 1)},
    {"dims": (16, 16, 32, 32), "depths": (1, 1, 1, 1)},
    {"embed_dims": (16, 16, 32, 32), "depths": (1, 1, 1, 1)},
    {"layers": (1, 1, 1, 1), "channels": (16, 16, 16, 16)},
    {"layers": (1, 1, 1, 1)},
    {"depths": (1, 1, 1, 1)},
    {"depth": 2},
    {},
)


def names() -> list[str]:
    return sorted(timm.list_modules())


def _smallest(module: str) -> tuple[str, dict[str, Any]]:
    """The model with the fewest parameters of some with small names, and its arguments; they are built without
    memory."""
    listed = timm.list_models(module=module)
    small = sorted((name for name in listed if re.search(SMALL, name)), key=lambda name: not name.startswith("test_"))
    counted = []
    for name in (small or listed)[:LOOKED_AT]:
        for sizes in SIZES if not name.startswith("test_") else ({},):
            try:
                with torch.device("meta"):
                    counted.append((sum(p.numel() for p in timm.create_model(name, **sizes).parameters()), name, sizes))
            except Exception:  # arguments that it does not take, or values that it computes with while it is built
                continue
    return min(counted, key=lambda one: one[0])[1:] if counted else ((small or listed)[0], {})


def build(module: str) -> Iterator[tuple[nn.Module, Any]]:
    """The model at small images where it takes them, else at its own size; with a function (seed) -> inputs."""
    name, sizes = _smallest(module)
    for size in (64, 128, None):
        try:
            model = timm.create_model(name, num_classes=8, **sizes, **({} if size is None else {"img_size": size}))
        except (
            TypeError,
            AssertionError,
            ValueError,
            RuntimeError,
        ):  # most convolutional ones have no argument img_size
            model = timm.create_model(name, num_classes=8, **sizes)
        channels, side, _ = model.default_cfg["input_size"]

        def inputs(
            seed: int, shape: tuple[int, ...] = (2, channels, size or side, size or side)
        ) -> dict[str, torch.Tensor]:
            return {"x": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}

        yield model, inputs
