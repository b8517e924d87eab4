"""Runs that the tests compare: the same training by plain PyTorch in one process, and by the engine on several ranks.

Models are built once and copied on every rank: torch's random generator is shared by threads.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import zeropage
from zeropage.testing import run_ranks

LEARNING_RATE = 1e-2
WEIGHT_DECAY = 0.01
TIMEOUT_MS = 20_000
DAMPING_EPS = 1e-4  # where a true gradient is zero (a bias before a normalization) Adam would divide noise by noise


class SmallNet(nn.Module):
    """A residual net on tokens: tied embedding, layer norms, a parameter of 3 elements. About 37,000 parameters."""

    def __init__(self, width: int = 64, layers: int = 2, vocabulary: int = 50):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.expand = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(layers))
        self.contract = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(layers))
        self.tiny = nn.Parameter(torch.ones(3))

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """tokens, targets [B, T] -> the mean cross entropy."""
        h = self.embedding(tokens)
        for norm, expand, contract in zip(self.norms, self.expand, self.contract, strict=True):
            h = h + contract(F.gelu(expand(norm(h)))) * self.tiny.sum()
        return F.cross_entropy((h @ self.embedding.weight.t()).flatten(0, 1).float(), targets.flatten())


def small_net(seed: int = 0) -> SmallNet:
    torch.manual_seed(seed)
    return SmallNet()


def token_batch(step: int, size: int = 8, length: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets [size, length] of one step; this is the whole batch, and each rank takes a part of it."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 50, (size, length), generator=generator)
    return tokens, (tokens * 7 + 1) % 50


def part_of_batch(batch: tuple[torch.Tensor, ...], world: int, rank: int, micro: int = 0, accumulation: int = 1):
    """The micro batch of a rank: micro batches of all ranks are the batch, each of the same size."""
    index = micro * world + rank
    return tuple(x.chunk(world * accumulation)[index] for x in batch)


def config_of(
    stage: int, *, batch: int = 8, accumulation: int = 1, clipping: float = 0.5, eps: float = 1e-8, **sections: Any
) -> dict[str, Any]:
    """A configuration with AdamW. Keys of `zero_optimization` and `zeropage` in `sections` are added to the
    defaults."""
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0, **sections.pop("zero_optimization", {})}
    own = {"timeout_ms": TIMEOUT_MS, **sections.pop("zeropage", {})}
    return {
        "train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clipping,
        "optimizer": {"type": "AdamW", "params": {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "eps": eps}},
        "zero_optimization": zero,
        "zeropage": own,
        **sections,
    }


def flat_parameters(model: nn.Module) -> torch.Tensor:
    """All parameters one after the other, in fp32."""
    with zeropage.zero.GatheredParameters(list(model.parameters())), torch.no_grad():
        return torch.cat([p.detach().flatten().float() for p in model.parameters()])


@dataclass
class Outcome:
    """What one rank has seen of a run."""

    parameters: torch.Tensor
    losses: list[float] = field(default_factory=list)
    loss_scales: list[float] = field(default_factory=list)
    applied: list[bool] = field(default_factory=list)
    pager: Any = None
    page_count: int = 0


def train_plain(model: nn.Module, steps: int, clipping: float = 0.5) -> torch.Tensor:
    """torch.optim.AdamW on whole batches in this process; the final parameters."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for step in range(steps):
        optimizer.zero_grad()
        model(*token_batch(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clipping)
        optimizer.step()
    return flat_parameters(model)


def train_engine(engine: Any, world: int, rank: int, steps: int, accumulation: int = 1) -> Outcome:
    """`steps` updates on this rank's parts of the token batches."""
    outcome = Outcome(torch.empty(0))
    for step in range(steps):
        for micro in range(accumulation):
            loss = engine(*part_of_batch(token_batch(step), world, rank, micro, accumulation))
            engine.backward(loss)
            engine.step()
            outcome.losses.append(loss.item())
        outcome.loss_scales.append(engine.loss_scale())
        outcome.applied.append(engine.was_step_applied())
    outcome.pager = engine._core.pager_stats
    outcome.page_count = engine._core.page_count
    outcome.parameters = flat_parameters(engine.module)
    return outcome


def interrupted_run(engine: Any, rank: int, folder: Any, resume: bool) -> torch.Tensor:
    """Six steps of two ranks, saved after three; or the last three of them, from what was saved. Parameters at the end,
    flat in fp32."""
    if resume:
        engine.load_checkpoint(folder)
    for step in range(3 if resume else 0, 6):
        if step == 3 and not resume:
            engine.save_checkpoint(folder)
        engine.backward(engine(*part_of_batch(token_batch(step), 2, rank)))
        engine.step()
    return flat_parameters(engine.module)


def train_ranks(
    model: nn.Module,
    world: int,
    config: dict[str, Any],
    steps: int,
    prepare: Callable[[Any, int], None] | None = None,
    faults: dict[str, Any] | None = None,
) -> list[Outcome]:
    """The run on ranks as threads, checked to end with the same parameters on all; one outcome per rank.

    prepare: called with each rank's engine and rank before the first step. faults: see `zeropage.testing.run_ranks`.
    """

    def run(rank: int, communicator: Any) -> Outcome:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config)
        if prepare is not None:
            prepare(engine, rank)
        return train_engine(engine, world, rank, steps, config["gradient_accumulation_steps"])

    outcomes = run_ranks(world, run, **(faults or {}))
    for rank, outcome in enumerate(outcomes):
        assert torch.equal(outcome.parameters, outcomes[0].parameters), (
            f"rank {rank} ended with other parameters than rank 0"
        )
    return outcomes


LossOf = Callable[[Any, int, int], torch.Tensor]


def plain_run(
    model: nn.Module, loss_of: LossOf, world: int, steps: int, between: Callable[[nn.Module, int], None] | None = None
):
    """`loss_of(model, step, rank)` averaged over the ranks' parts, one after the other in this process, by AdamW."""
    model = copy.deepcopy(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=DAMPING_EPS)
    for step in range(steps):
        optimizer.zero_grad()
        for rank in range(world):
            (loss_of(model, step, rank) / world).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        if between is not None:
            between(model, step)
    return flat_parameters(model)


def paged_config(live_numel: int = 1, **sections: Any) -> dict[str, Any]:
    """The most demanding settings of stage 3: a page per parameter, and only what an operator needs stays gathered."""
    zero = {"stage3_max_live_parameters": live_numel, **sections.pop("zero_optimization", {})}
    own = {"page_numel": 1, **sections.pop("zeropage", {})}
    return config_of(3, zero_optimization=zero, zeropage=own, **{"eps": DAMPING_EPS, **sections})


def engine_run(
    model: nn.Module,
    loss_of: LossOf,
    world: int,
    steps: int,
    between: Callable[[nn.Module, int], None] | None = None,
    config: dict[str, Any] | None = None,
    **faults: Any,
) -> torch.Tensor:
    """The same on ranks as threads; the parameters, which all ranks end with. `between` is given the bare module."""

    def run(rank: int, communicator: Any) -> torch.Tensor:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config or paged_config())
        for step in range(steps):
            engine.backward(loss_of(engine, step, rank))
            engine.step()
            if between is not None:
                between(engine.module, step)
        return flat_parameters(engine.module)

    ended = run_ranks(world, run, **faults)
    for rank, parameters in enumerate(ended):
        assert torch.equal(parameters, ended[0]), f"rank {rank} ended with other parameters than rank 0"
    return ended[0]


def assert_trains_like_plain(
    model: nn.Module, loss_of: LossOf, world: int = 2, steps: int = 4, bound: float = 1e-5, between=None, **options: Any
) -> None:
    """The engine with `paged_config` compared with plain PyTorch: every parameter within `bound`, after moving by up to
    0.01 per step."""
    expected = plain_run(model, loss_of, world, steps, between)
    found = engine_run(model, loss_of, world, steps, between, **options)
    assert not torch.equal(expected, flat_parameters(model)), "this run trains nothing"
    difference = (found - expected).abs().max().item()
    assert difference < bound
