"""Parameters that are tensors around other tensors: int8 weights of torchao as a frozen base."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from training import config_of, flat_parameters

import zeropage
from zeropage import errors
from zeropage.testing import run_ranks


class Adapted(nn.Module):
    """Two quantized layers, and the trained modules next to them."""

    def __init__(self):
        super().__init__()
        self.base = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
        quantize_(self.base, Int8WeightOnlyConfig())
        self.base.requires_grad_(False)
        self.adapter = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.base(x) + self.adapter(x)).square().mean()


def batch(step: int, rank: int) -> torch.Tensor:
    return torch.randn(4, 32, generator=torch.Generator().manual_seed(10 * step + rank))


def made(seed: int) -> Adapted:
    torch.manual_seed(seed)
    return Adapted()


@pytest.mark.parametrize("stage", (0, 2, 3))
def test_a_quantized_base_trains_as_in_plain_pytorch(stage):
    """Catches a base that "shares memory" with itself, or differs on ranks that were made from other seeds."""
    plain = made(0)
    optimizer = torch.optim.AdamW(plain.adapter.parameters(), lr=1e-2, weight_decay=0.01, eps=1e-4)
    for step in range(3):
        optimizer.zero_grad()
        for rank in range(2):
            (plain(batch(step, rank)) / 2).backward()
        optimizer.step()
    models = [made(0), made(1)]

    def run(rank: int, communicator: Any) -> torch.Tensor:
        engine = zeropage.initialize(model=models[rank], config=config_of(stage, batch=2, clipping=0.0, eps=1e-4))[0]
        for step in range(3):
            engine.backward(engine(batch(step, rank)))
            engine.step()
        return flat_parameters(engine.module.adapter)

    for parameters in run_ranks(2, run):
        assert (parameters - flat_parameters(plain.adapter)).abs().max().item() < 1e-5


@pytest.mark.parametrize("exclude", (False, True))
def test_checkpoints_have_a_quantized_base(exclude, tmp_path):
    """Catches a base that a checkpoint leaves out unasked, or cannot leave out."""
    config = config_of(0, batch=1)
    source = zeropage.initialize(model=made(0), config=config)[0]
    source.save_checkpoint(tmp_path, exclude_frozen_parameters=exclude)
    target = made(1)
    own = copy.deepcopy(target.base[0].weight.dequantize())
    engine = zeropage.initialize(model=target, config=config)[0]
    engine.load_checkpoint(tmp_path)
    expected = own if exclude else source.module.base[0].weight.dequantize()
    assert torch.equal(target.base[0].weight.dequantize(), expected)


def test_a_quantized_weight_cannot_be_trained():
    """Catches an error of the library itself, in the middle of a step, instead of a message."""
    model = made(0)
    model.base[0].weight.requires_grad_(True)
    with pytest.raises(errors.ConfigError, match="base.0.weight.*freeze"):
        zeropage.initialize(model=model, config=config_of(0, batch=1))
