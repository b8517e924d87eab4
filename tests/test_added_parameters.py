"""Parameters that a model gets after initialize: they train as a new group does in plain PyTorch, and are saved."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from training import (
    DAMPING_EPS,
    LEARNING_RATE,
    WEIGHT_DECAY,
    config_of,
    flat_parameters,
    part_of_batch,
    small_net,
    token_batch,
)

import zeropage
from zeropage.errors import PeerError, UsageError
from zeropage.testing import run_ranks

WORLD = 2
STAGES = pytest.mark.parametrize("stage", [0, 1, 2, 3])
NET = small_net()  # copied: torch's random generator is shared by ranks that are threads
HEAD = nn.Linear(64, 48)


class WithHead(nn.Module):
    """A net whose loss has another term once the net has a head."""

    def __init__(self):
        super().__init__()
        self.net = copy.deepcopy(NET)
        self.head: nn.Linear | None = None

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = self.net(tokens, targets)
        return (
            loss if self.head is None else loss + self.head(self.net.embedding(tokens).float().mean(1)).square().mean()
        )

    def add_head(self) -> list[nn.Parameter]:
        """Adds the head, and returns its parameters."""
        self.head = copy.deepcopy(HEAD)
        return list(self.head.parameters())


def train_with_head(engine: Any, rank: int, steps: range, added_at: int = 2) -> None:
    for step in steps:
        if step == added_at:
            engine.module.add_head()
            engine.add_parameters(lr=3e-3)
        engine.backward(engine(*part_of_batch(token_batch(step), WORLD, rank)))
        engine.step()


def plain_with_head(steps: int) -> torch.Tensor:
    model = WithHead()
    options = {"weight_decay": WEIGHT_DECAY, "eps": DAMPING_EPS}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, **options)
    for step in range(steps):
        if step == 2:
            optimizer.add_param_group({"params": model.add_head(), "lr": 3e-3})
        optimizer.zero_grad()
        for rank in range(WORLD):
            (model(*part_of_batch(token_batch(step), WORLD, rank)) / WORLD).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return flat_parameters(model)


@STAGES
def test_added_parameters_train_and_are_saved(stage: int, tmp_path):
    """Catches added parameters that do not train as a new group would, whose memory is not counted, or that checkpoints
    lack."""
    config = config_of(stage, batch=8, eps=DAMPING_EPS)

    def run(rank: int, communicator: Any) -> tuple[torch.Tensor, torch.Tensor]:
        engine, *_ = zeropage.initialize(model=WithHead(), config=config)
        before = engine.memory_report().ranks[rank]
        train_with_head(engine, rank, range(3))
        engine.save_checkpoint(tmp_path)
        train_with_head(engine, rank, range(3, 5))
        after = engine.memory_report().ranks[rank]
        assert all(after[kind] > before[kind] for kind in ("parameters", "gradients", "optimizer"))
        assert len(engine.optimizer.param_groups) == 2 and engine.get_lr() == [LEARNING_RATE, 3e-3]
        resumed, *_ = zeropage.initialize(model=WithHead(), config=config)
        resumed.module.add_head()
        resumed.optimizer.add_param_group({"params": list(resumed.module.head.parameters()), "lr": 3e-3})
        resumed.load_checkpoint(tmp_path)
        train_with_head(resumed, rank, range(3, 5))
        return flat_parameters(engine.module), flat_parameters(resumed.module)

    for straight, resumed in run_ranks(WORLD, run):
        assert torch.equal(straight, resumed)
        assert (straight - plain_with_head(5)).abs().max() < 1e-5


def test_parameters_are_added_between_updates_and_alike():
    """Catches an addition in the middle of an accumulation window, of nothing, and one that differs between ranks."""

    def run(rank: int, communicator: Any) -> None:
        engine, *_ = zeropage.initialize(model=WithHead(), config=config_of(2, batch=16, accumulation=2))
        with pytest.raises(UsageError, match="no parameters that the engine does not have"):
            engine.add_parameters()
        engine.backward(engine(*part_of_batch(token_batch(0), WORLD, rank)))
        engine.module.add_head()
        with pytest.raises(UsageError, match="in the middle of an update"):
            engine.add_parameters()
        assert len(engine.optimizer.param_groups) == 1
        engine.zero_grad()
        engine.module.head = nn.Linear(64, 2 + rank)
        engine.add_parameters()

    with pytest.raises(PeerError, match=r"added head\.weight numel=128.*added head\.weight numel=192"):
        run_ranks(WORLD, run)


@pytest.mark.parametrize("stage", [1, 3])
def test_optimizers_of_pytorch_get_unfrozen_and_added_parameters(stage: int, tmp_path):
    """Catches an optimizer that PyTorch runs and that has no shards of a layer unfrozen or a head added later, or loses
    its state of them."""
    options = {"lr": 1e-3, "eps": 1e-3}

    def change(model: WithHead, step: int) -> list[nn.Parameter]:
        """Unfreezes a layer before step 1, and adds the head before step 2; the parameters of a new head."""
        if step == 1:
            model.net.expand[0].requires_grad_(True)
        return model.add_head() if step == 2 else []

    def start() -> WithHead:
        model = WithHead()
        model.net.expand[0].requires_grad_(False)
        return model

    def on_plain() -> torch.Tensor:
        model = start()
        optimizer = torch.optim.RMSprop(model.parameters(), **options)
        for step in range(5):
            if added := change(model, step):
                optimizer.add_param_group({"params": added, "lr": 2e-3})
            optimizer.zero_grad()
            for rank in range(WORLD):
                (model(*part_of_batch(token_batch(step), WORLD, rank)) / WORLD).backward()
            optimizer.step()
        return flat_parameters(model)

    def run(rank: int, communicator: Any) -> tuple[torch.Tensor, torch.Tensor]:
        ended = []
        for resume in (False, True):
            model = start()
            config = config_of(stage, batch=8, clipping=0.0)
            del config["optimizer"]
            optimizer = torch.optim.RMSprop(model.parameters(), **options)
            engine, *_ = zeropage.initialize(model=model, config=config, optimizer=optimizer)
            for step in range(5):
                if change(model, step):
                    engine.add_parameters(lr=2e-3)
                if step == 3 and resume:
                    engine.load_checkpoint(tmp_path)
                elif step == 3:
                    engine.save_checkpoint(tmp_path)
                if resume and step < 3:
                    continue
                engine.backward(engine(*part_of_batch(token_batch(step), WORLD, rank)))
                engine.step()
            ended.append(flat_parameters(model))
        return ended[0], ended[1]

    for straight, resumed in run_ranks(WORLD, run):
        assert torch.equal(straight, resumed)
        assert (straight - on_plain()).abs().max() < 1e-5
