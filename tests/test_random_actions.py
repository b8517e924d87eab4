"""Random sequences of what programs do between steps, drawn from a seed, against the same sequence in plain PyTorch, at
every stage."""

import copy
import os
import random
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
from zeropage.testing import run_ranks

WORLD = 2
SEQUENCES = 50  # of each stage, in CI
STEPS = 6
ACTIONS = (
    "freeze", "unfreeze", "accumulate", "learning rate", "edit", "replace", "swap", "add", "save and load", "own backward", "clip", "generate", "fork",
    "nothing",
)  # fmt: skip
OWN_CLIPPING = 0.1  # of the action "clip", below the engine's
LAYERS = ("expand.0", "expand.1", "contract.0", "contract.1", "norms.0", "embedding")


NET = small_net()  # copied: torch's random generator is shared by ranks that are threads


def head(width: int) -> nn.Linear:
    """Made without random numbers."""
    made = nn.Linear(64, width)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
    return made


class Net(nn.Module):
    """A small net, and heads that it may get."""

    def __init__(self):
        super().__init__()
        self.net = copy.deepcopy(NET)
        self.heads = nn.ModuleList()

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = self.net(tokens, targets)
        for head in self.heads:
            loss = loss + head(self.net.embedding(tokens).float().mean(1)).square().mean()
        return loss


def draw(seed: int) -> list[tuple[str, Any]]:
    """One action before each step."""
    rng = random.Random(seed)
    actions = []
    for _ in range(STEPS):
        action = rng.choice(ACTIONS)
        choice = {
            "accumulate": rng.choice([1, 2, 4]),
            "learning rate": rng.choice([1e-3, 5e-3]),
            "add": rng.randint(1, 9),
        }
        actions.append((action, choice.get(action, rng.choice(LAYERS))))
    return actions


def change(model: Net, action: str, what: Any) -> None:
    """What an action does to the model, with an engine or without."""
    if action in ("freeze", "unfreeze"):
        model.net.get_submodule(what).requires_grad_(action == "unfreeze")
    elif action in ("edit", "replace", "swap"):
        parameter = model.net.get_submodule(what).weight
        with torch.no_grad():
            if action == "edit":
                parameter.mul_(0.9)
            elif action == "replace":
                parameter.data = parameter.detach() * 1.1
            else:
                torch.utils.swap_tensors(
                    parameter, nn.Parameter(parameter.detach() * 0.8, requires_grad=parameter.requires_grad)
                )
    elif action == "add":
        model.heads.append(head(what))
    elif action == "generate":
        with torch.no_grad():
            model(*token_batch(0))
    elif action == "fork":
        child = os.fork()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


def on_plain(actions: list[tuple[str, Any]]) -> torch.Tensor:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=DAMPING_EPS)
    accumulation = 1
    for step, (action, what) in enumerate(actions):
        change(model, action, what)
        if action == "add":
            optimizer.add_param_group({"params": list(model.heads[-1].parameters())})
        elif action == "accumulate":
            accumulation = what
        elif action == "learning rate":
            for group in optimizer.param_groups:
                group["lr"] = what
        optimizer.zero_grad()
        for micro in range(accumulation):
            for rank in range(WORLD):
                (model(*part_of_batch(token_batch(10 * step + micro), WORLD, rank)) / (WORLD * accumulation)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OWN_CLIPPING if action == "clip" else 0.5)
        optimizer.step()
    return flat_parameters(model)


def on_rank(rank: int, stage: int, actions: list[tuple[str, Any]], folder: Any) -> torch.Tensor:
    own = {"page_numel": random.Random(str(actions)).choice([1, 5000, 1 << 20])}
    engine, optimizer, *_ = zeropage.initialize(
        model=Net(), config=config_of(stage, batch=8, eps=DAMPING_EPS, zeropage=own)
    )
    for step, (action, what) in enumerate(actions):
        change(engine.module, action, what)
        if action == "add":
            engine.add_parameters()
        elif action == "accumulate":
            engine.set_train_batch_size(8 * what)
        elif action == "learning rate":
            for group in optimizer.param_groups:
                group["lr"] = what
        elif action == "save and load":
            engine.save_checkpoint(folder, tag=f"step{step}")
            with torch.no_grad():
                engine.module.net.tiny.zero_()
            engine.load_checkpoint(folder)
        for micro in range(engine.gradient_accumulation_steps()):
            loss = engine(*part_of_batch(token_batch(10 * step + micro), WORLD, rank))
            loss.backward() if action == "own backward" else engine.backward(loss)
            if action == "clip" and engine.is_gradient_accumulation_boundary():
                torch.nn.utils.clip_grad_norm_(engine.module.parameters(), OWN_CLIPPING)
            engine.step()
    return flat_parameters(engine.module)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_random_actions(stage: int, tmp_path):
    """Catches any sequence of freezing, unfreezing, accumulating, editing, exchanging, adding, saving and loading that
    trains another model than PyTorch. The sequence and its seed are in the message."""
    for seed in range(SEQUENCES * stage, SEQUENCES * (stage + 1)):
        actions = draw(seed)
        expected = on_plain(copy.deepcopy(actions))
        found = run_ranks(WORLD, lambda rank, _: on_rank(rank, stage, actions, tmp_path / str(seed)))
        for rank, parameters in enumerate(found):
            difference = (parameters - expected).abs().max().item()
            assert difference < 2e-5, f"seed {seed}, rank {rank}: {difference} after {actions}"
