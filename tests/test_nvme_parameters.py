"""Parameters and gradients on disk, in every use of them: the same bits as in memory."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from test_edits import EDITS, token_loss
from test_init import is_absent
from test_nvme import PRECISIONS, Tiny
from torch import nn
from torch.utils.checkpoint import checkpoint
from training import (
    SmallNet,
    config_of,
    engine_run,
    flat_parameters,
    paged_config,
    part_of_batch,
    small_net,
    token_batch,
    train_engine,
    train_ranks,
)

import zeropage
from zeropage.testing import run_ranks


def on_disk(config: dict[str, Any], folder: Path, **parameters: Any) -> dict[str, Any]:
    """The same training with all sharded state on the drive."""
    config = copy.deepcopy(config)
    drive = {"device": "nvme", "nvme_path": str(folder), "buffer_count": 3}
    config["zero_optimization"] |= {
        "offload_optimizer": drive,
        "offload_param": {**drive, "max_in_cpu": 0, **parameters},
    }
    return {**config, "aio": {"block_size": 4096, "queue_depth": 4}}


def every_edit(model: nn.Module, step: int) -> None:
    EDITS[step](model, step)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("live_numel", [1, 1_000_000])
def test_what_users_write(live_numel: int, precision: str, tmp_path: Path):
    """Catches edits that are not written to the drive, and masters that do not follow them."""
    config = paged_config(live_numel, **PRECISIONS[precision])
    expected = engine_run(small_net(), token_loss, 2, len(EDITS), every_edit, config)
    found = engine_run(small_net(), token_loss, 2, len(EDITS), every_edit, on_disk(config, tmp_path))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("optimizer", ["AdamW", "Lamb", "SGD"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_accumulated_gradients_norms_and_optimizers(precision: str, optimizer: str, tmp_path: Path):
    """Catches gradients that do not add up on the drive, norms of an older gradient, and the second pass of Lamb
    reading old state."""
    sections: dict[str, Any] = {} if precision == "fp32" else {precision: {"enabled": True}}
    config = config_of(
        3,
        batch=16,
        accumulation=2,
        clipping=0.05,
        zero_optimization={"stage3_max_live_parameters": 9000},
        zeropage={"page_numel": 5000},
        **sections,
    )
    config["optimizer"] = {"type": optimizer, "params": {"lr": 1e-2}}
    model = small_net()
    expected = train_ranks(model, 2, config, 12)[0]
    found = train_ranks(model, 2, on_disk(config, tmp_path), 12)[0]
    assert torch.equal(found.parameters, expected.parameters)
    assert (found.losses, found.applied) == (expected.losses, expected.applied)


class Recomputed(SmallNet):
    """The small net whose layers are computed again in the backward."""

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        h = self.embedding(tokens)
        for norm, expand, contract in zip(self.norms, self.expand, self.contract, strict=True):
            h = h + checkpoint(
                lambda h, norm=norm, expand=expand, contract=contract: contract(expand(norm(h))), h, use_reentrant=False
            )
        return nn.functional.cross_entropy((h @ self.embedding.weight.t()).flatten(0, 1).float(), targets.flatten())


@pytest.mark.parametrize("world", [1, 2])
def test_evaluation_recomputation_and_reading(world: int, tmp_path: Path):
    """Catches passes other than a training step that read the drive's pages wrongly or leave them in a state no step
    expects."""
    torch.manual_seed(0)
    model = Recomputed()

    def run(config: dict[str, Any]) -> list[Any]:
        def rank_of(rank: int, communicator: Any) -> Any:
            engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config)
            seen = []
            for step in range(4):
                batch = part_of_batch(token_batch(step), world, rank)
                with torch.no_grad():
                    seen.append(engine(*batch).item())
                engine.backward(engine(*batch))
                engine.step()
                with (
                    zeropage.zero.GatheredParameters([engine.module.expand[0].weight], modifier_rank=0),
                    torch.no_grad(),
                ):
                    if rank == 0:
                        engine.module.expand[0].weight.mul_(0.5)
                seen.append(engine.module.embedding.weight.abs().sum().item())
            state = {name: value.clone() for name, value in engine.module.state_dict().items()}
            return seen, state, flat_parameters(engine.module)

        return run_ranks(world, rank_of)

    config = paged_config(1)
    for found, expected in zip(run(on_disk(config, tmp_path)), run(config), strict=True):
        assert found[0] == expected[0]
        assert all(torch.equal(found[1][name], expected[1][name]) for name in expected[1])
        assert torch.equal(found[2], expected[2])


class OneHuge(nn.Module):
    """A matrix of 51,200 elements with small ones."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.inner = nn.Linear(16, 64)
        self.huge = nn.Linear(64, 800, bias=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        h = self.huge(self.inner((tokens[:, :1] + torch.arange(16)).float().sin()))
        return (h - targets[:, :1].float().cos()).square().mean()


def test_a_parameter_of_fifty_pages(tmp_path: Path):
    """Catches the reference's "more elements than buffer size": any parameter passes through the buffers, whatever
    their hints say."""
    config = paged_config(1, zeropage={"page_numel": 1024})
    found = train_ranks(OneHuge(), 2, on_disk(config, tmp_path, buffer_size=1000), 10)[0]
    assert torch.equal(found.parameters, train_ranks(OneHuge(), 2, config, 10)[0].parameters)


@pytest.mark.parametrize("world", [1, 2])
def test_init_puts_what_does_not_fit_on_the_drive(world: int, tmp_path: Path):
    """Catches values that change on the drive before there is an engine, and space that is not given back."""
    config = config_of(3, zero_optimization={"stage3_max_live_parameters": 8000}, zeropage={"page_numel": 1})
    whole = small_net()

    def rank_of(rank: int, communicator: Any) -> Any:
        with zeropage.zero.Init(config_dict_or_path=on_disk(config, tmp_path)):
            model = SmallNet()
            assert sum(is_absent(parameter) for parameter in model.parameters()) >= 3, (
                "nothing was sharded, so this shows nothing"
            )
            with zeropage.zero.GatheredParameters(list(model.parameters()), modifier_rank=0), torch.no_grad():
                for parameter, value in zip(model.parameters(), whole.parameters(), strict=True):
                    parameter.copy_(value)
        engine, *_ = zeropage.initialize(model=model, config=on_disk(config, tmp_path))
        return flat_parameters(model), train_engine(engine, world, rank, 3).parameters

    expected = train_ranks(whole, world, config, 3)[0].parameters
    for initial, trained in run_ranks(world, rank_of):
        assert torch.equal(initial, flat_parameters(whole))
        assert torch.equal(trained, expected)


def test_memory_holds_the_buffers_alone(tmp_path: Path):
    """Catches parameters or gradients that stay in memory, what grows over 200 steps, and counts that are not those of
    the formula."""
    engine, *_ = zeropage.initialize(model=Tiny(), config=on_disk(paged_config(1), tmp_path))
    train_engine(engine, 1, 0, 3)
    before, descriptors = engine.memory_report(), len(os.listdir("/proc/self/fd"))
    train_engine(engine, 1, 0, 200)
    after = engine.memory_report()
    assert after.ranks[0] == before.ranks[0] and after.host[0] == before.host[0]
    assert len(os.listdir("/proc/self/fd")) == descriptors
    for kind in ("parameters", "gradients", "optimizer"):
        assert after.host[0][kind] == 0 and after.ranks[0][kind] == 0, kind
