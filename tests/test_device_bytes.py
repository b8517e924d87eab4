"""How many bytes of device memory a step moves, counted on the simulated device."""

from typing import Any

import accelerator
import pytest
import simulated_device
import torch
from training import config_of, small_net, token_batch

import zeropage

pytestmark = pytest.mark.simulated

# Master and two moments read and written (24), gradient read (2), parameter written (2), gradient read once more for
# its norm (2), moved into its place where that is not kept as autograd made it (4), and room for sums of blocks. In
# fp32 the parameter is the master, and gradients are wider.
MOST_BYTES = {"bf16": 35, "fp32": 41}
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def moved(counted: dict[str, int]) -> int:
    return counted["bytes_read"] + counted["bytes_written"]


def moved_by_autograd(precision: str) -> int:
    """Bytes that only the backward moves, which leaves gradients where it made them."""
    model = small_net().to(accelerator.device(), TYPES[precision])
    loss = model(*(x.to(accelerator.device()) for x in token_batch(0)))
    torch.accelerator.synchronize()
    with simulated_device.count() as counted:
        loss.backward()
    return moved(counted)


@pytest.mark.parametrize("precision", MOST_BYTES)
@pytest.mark.parametrize("stage", range(4))
def test_a_step_moves_little_more_than_its_state(stage: int, precision: str):
    """Catches a copy of a gradient, a temporary, or another pass over memory between autograd and the next forward."""
    sections: dict[str, Any] = {} if precision == "fp32" else {precision: {"enabled": True}}
    engine, *_ = zeropage.initialize(model=small_net(), config=config_of(stage, clipping=0.5, **sections))
    numel = sum(parameter.numel() for parameter in engine.module.parameters())
    for step in range(3):
        loss = engine(*(x.to(engine.device) for x in token_batch(step)))
        torch.accelerator.synchronize()
        with simulated_device.count() as counted:
            engine.backward(loss)
            engine.step()
            torch.accelerator.synchronize()
    per_parameter = (moved(counted) - moved_by_autograd(precision)) / numel
    assert per_parameter <= MOST_BYTES[precision], (per_parameter, counted)
