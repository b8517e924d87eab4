"""Options of reduction and odd kinds of parameters: the same training by other ways."""

import functools
from typing import Any

import pytest
import torch
from torch import nn
from training import DAMPING_EPS, config_of, engine_run, paged_config, plain_run, small_net, token_batch, train_ranks

STEPS = 6
# After six steps of up to 0.01:
EXACT = 2e-6  # fp32 in another order
BF16_GRADIENTS = 5e-3  # gradients rounded to bf16, 2^-9 of each
BF16_MODEL = 2e-2  # parameters and operators in bf16; parameters of up to about 2 have units of 2^-7


@functools.cache
def plain_parameters() -> torch.Tensor:
    return plain_run(small_net(), lambda model, step, rank: model(*token_batch(step)), 1, STEPS)


OPTIONS: dict[str, tuple[dict[str, Any], int, float | None]] = {
    "prescaled": ({"prescale_gradients": True}, 1, EXACT),
    "predivided": ({"prescale_gradients": True, "gradient_predivide_factor": 8.0}, 1, EXACT),
    "sent as bf16": ({"communication_data_type": "bf16"}, 1, BF16_GRADIENTS),
    "accumulated": ({}, 4, EXACT),
    "accumulated and prescaled": ({"prescale_gradients": True, "gradient_predivide_factor": 4.0}, 2, EXACT),
    "accumulated in fp32": ({"data_types": {"grad_accum_dtype": "fp32"}}, 2, EXACT),
    "accumulated and sent as bf16": ({"communication_data_type": "bf16"}, 2, BF16_GRADIENTS),
    "no clipping": ({"gradient_clipping": 1e6}, 1, None),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("stage", range(4))
def test_ways_of_reducing(stage, name):
    """Catches scales that are applied twice or not removed, and types that lose more precision than they should."""
    options, accumulation, bound = OPTIONS[name]
    config = {**config_of(stage, accumulation=accumulation, eps=DAMPING_EPS, zeropage={"page_numel": 5000}), **options}
    found = train_ranks(small_net(), 2, config, STEPS)[0].parameters
    if bound is None:
        assert not torch.allclose(found, plain_parameters(), atol=EXACT)
    else:
        assert (found - plain_parameters()).abs().max().item() < bound


@pytest.mark.parametrize("accumulation_dtype", ("bf16", "fp32"))
@pytest.mark.parametrize("accumulation", (1, 2))
@pytest.mark.parametrize("stage", range(4))
def test_bf16_stays_close_to_fp32(stage, accumulation, accumulation_dtype):
    """Catches sums in 16 bits that go wrong by more than their rounding, for every place where gradients add up."""
    own: dict[str, Any] = {
        "zero_optimization": {"stage3_param_persistence_threshold": 1000},
        "zeropage": {"page_numel": 5000},
    }
    sections: dict[str, Any] = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": accumulation_dtype}}
    config = config_of(stage, accumulation=accumulation, eps=DAMPING_EPS, **own, **sections)
    difference = (train_ranks(small_net(), 2, config, STEPS)[0].parameters - plain_parameters()).abs()
    assert difference.max().item() < BF16_MODEL
    assert difference.mean().item() < BF16_MODEL / 20


class OddParameters(nn.Module):
    """Integers, booleans, no elements, no dimensions, other strides, elements that share memory with themselves."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.order = nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False)
        self.mask = nn.Parameter(torch.tensor([True, False, True]), requires_grad=False)
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.transposed = nn.Parameter(torch.randn(4, 3).t())
        self.strided = nn.Parameter(torch.randn(6, 4)[::2])
        self.expanded = nn.Parameter(torch.randn(1, 4).expand(3, 4))
        self.last = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x @ self.transposed[self.order] * self.scalar + (x @ self.strided) + x @ self.expanded
        h = torch.cat([h * self.scalar, self.empty])
        return self.last(torch.where(self.mask.any(), h, -h)).square().mean()


@pytest.mark.parametrize("world", (1, 2))
@pytest.mark.parametrize("stage", range(4))
def test_odd_parameters(stage, world):
    """Catches parameters whose place in a page does not follow from their shape, type or strides."""

    def loss_of(model, step, rank):
        return model(torch.randn(2, 3, generator=torch.Generator().manual_seed(100 * step + rank)))

    # Plain PyTorch cannot update elements that share memory: there they get memory of their own first.
    plain = OddParameters()
    plain.expanded = nn.Parameter(plain.expanded.detach().clone())
    expected = plain_run(plain, loss_of, world, 4)
    found = engine_run(OddParameters(), loss_of, world, 4, config=paged_config(zero_optimization={"stage": stage}))
    assert (found - expected).abs().max().item() < EXACT
