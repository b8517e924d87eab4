"""A bit that flips in one rank's parameters: found within `zeropage.replica_check_steps` steps, with rank, page and
parameter."""

import copy
import ctypes

import pytest
import torch
from training import config_of, part_of_batch, small_net, token_batch

import zeropage
from zeropage.errors import PeerError
from zeropage.testing import run_ranks

WORLD = 3


def flip_a_bit(parameter: torch.Tensor) -> None:
    """Without the engine's knowledge, as a fault of the memory does."""
    ctypes.c_uint32.from_address(parameter.data_ptr() + 8).value ^= 1 << 20


def train(model: torch.nn.Module, stage: int, rank: int, every: int, flip: str | None, steps: int = 6) -> int:
    """Trains, and flips a bit on rank 1 after the second step; returns the steps that were taken."""
    model = copy.deepcopy(model)
    config = config_of(stage, batch=9, zeropage={"page_numel": 4096, "replica_check_steps": every})
    engine, *_ = zeropage.initialize(model=model, config=config)
    for step in range(steps):
        engine.backward(engine(*part_of_batch(token_batch(step, size=9), WORLD, rank)))
        engine.step()
        if step == 1 and rank == 1 and flip is not None:
            flip_a_bit(model.get_parameter(flip))
    return engine.global_steps


@pytest.mark.parametrize("name", ["tiny", "expand.1.weight"])
def test_a_flipped_bit_is_found_and_named(name):
    """Catches ranks that train different models from then on without an error."""
    model = small_net()
    with pytest.raises(PeerError) as error:
        run_ranks(WORLD, lambda rank, communicator: train(model, 0, rank, 4, name))
    message = str(error.value)
    assert "after step 4 ranks do not have the same parameters" in message
    assert "rank 1 from rank 0, 2" in message and f'"{name}"' in message and "page " in message


@pytest.mark.parametrize("stage", range(4))
def test_ranks_that_agree_are_not_reported(stage):
    """Catches padding, or a page that is still being gathered, reported as a difference; and a check that 0 does not
    turn off."""
    model = small_net()
    assert run_ranks(WORLD, lambda rank, communicator: train(model, stage, rank, 1, None)) == [6] * WORLD
    if stage == 0:
        assert run_ranks(WORLD, lambda rank, communicator: train(model, stage, rank, 0, "tiny")) == [6] * WORLD
