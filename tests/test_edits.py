"""Parameters that users write between steps keep what was written at stage 3: two ranks, a page per parameter."""

from typing import Any

import pytest
import torch
from torch import nn
from training import (
    DAMPING_EPS,
    assert_trains_like_plain,
    config_of,
    engine_run,
    paged_config,
    part_of_batch,
    small_net,
    token_batch,
)


def token_loss(model, step: int, rank: int) -> torch.Tensor:
    return model(*part_of_batch(token_batch(step), 2, rank))


def clamp(model, step) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.clamp_(-0.05, 0.05)


def scale_through_data(model, step) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.9)


def replace_data(model, step) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.9


def replace_by_views_of_one_vector(model, step) -> None:
    vector = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.nn.utils.vector_to_parameters(vector * 0.9, model.parameters())


def scale_all_at_once(model, step) -> None:
    with torch.no_grad():
        torch._foreach_mul_(list(model.parameters()), 0.9)


def initialize_again(model, step) -> None:
    nn.init.constant_(model.contract[0].weight, 0.01 * (step + 1))


def load_state(model, step) -> None:
    model.load_state_dict({name: value * 0.9 for name, value in model.state_dict().items()})


def write_into_rows(model, step) -> None:
    with torch.no_grad():
        model.embedding.weight[3] = 0.5
        model.expand[1].weight.t()[2:4].mul_(2)
        model.norms[0].bias.view(8, 8).diagonal().fill_(0.1)


EDITS = (
    clamp,
    scale_through_data,
    replace_data,
    replace_by_views_of_one_vector,
    scale_all_at_once,
    initialize_again,
    load_state,
    write_into_rows,
)


@pytest.mark.parametrize("live_numel", (1, 1_000_000))
@pytest.mark.parametrize("edit", EDITS)
def test_edits_between_steps(edit, live_numel):
    """Catches writes that are lost: on a page that is evicted, replaced or updated afterwards."""
    assert_trains_like_plain(small_net(), token_loss, between=edit, config=paged_config(live_numel))


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("edit", (clamp, replace_data, initialize_again))
def test_masters_follow_edits(edit, stage):
    """Catches fp32 masters that undo what was written into the 16-bit parameters, on stages with and without pages."""

    def run(config):
        return engine_run(small_net(), token_loss, 2, 3, edit, config)

    sections: dict[str, Any] = {"bf16": {"enabled": True}, "eps": DAMPING_EPS}
    found = run(paged_config(zero_optimization={"stage": stage}, **sections))
    # Stages 1-3 round gradients in the same way; stage 0 rounds their sum once more.
    reference = run(config_of(1, **sections))
    bound = 2**-7 if stage == 0 else 0.0
    assert (found - reference).abs().max().item() <= bound
    if edit is clamp:
        assert found.abs().max().item() <= 0.0501
