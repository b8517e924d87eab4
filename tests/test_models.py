"""Models of many kinds train at stage 3 as they do in plain PyTorch: two ranks, a page per parameter, nothing kept
gathered."""

import copy
import json
import re

import pytest
import torch
from gpt import Gpt, GptConfig
from processes import run_processes
from torch import nn
from torch.nn import functional as F
from training import assert_trains_like_plain, engine_run, flat_parameters, paged_config, small_net, token_batch

import zeropage


def numbers(*shape: int, step: int, rank: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 * step + rank))


def seeded(make) -> nn.Module:
    torch.manual_seed(0)
    return make()


def square_loss(*shape: int):
    """The mean square of the output on random input of this shape."""
    return lambda model, step, rank: model(numbers(*shape, step=step, rank=rank)).square().mean()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(self.lstm(x)[0])[0]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x + self.attention(x, x, x, need_weights=False)[0])


class UsedTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.shared(F.gelu(self.norm(self.shared(x)))))


def convolutions(memory_format: torch.memory_format = torch.contiguous_format) -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2), nn.GroupNorm(2, 4)]
    return nn.Sequential(*layers).to(memory_format=memory_format)


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 2))


MODELS = {
    "three elements": (
        lambda: nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1), nn.Linear(1, 3, bias=False)),
        (4, 1),
    ),
    "recurrent": (Recurrent, (2, 5, 8)),
    "convolutions": (convolutions, (4, 3, 8, 8)),
    "channels last": (lambda: convolutions(torch.channels_last), (4, 3, 8, 8)),
    "attention": (Attention, (2, 5, 16)),
    "used twice": (UsedTwice, (4, 8)),
    "weight norm": (weight_normed, (4, 8)),
    "learned activation": (lambda: nn.Sequential(nn.Linear(8, 8), nn.PReLU(8), nn.Linear(8, 3)), (4, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_layers(name):
    """Catches operators whose parameters are not found, gradients in another memory order, views of parameters that
    lose them."""
    make, shape = MODELS[name]
    assert_trains_like_plain(seeded(make), square_loss(*shape))


def test_running_statistics_are_the_modules_own():
    """Catches buffers that are lost or shared when a model is taken over."""
    seen = []
    engine_run(
        seeded(convolutions),
        square_loss(4, 3, 8, 8),
        2,
        3,
        between=lambda model, step: seen.append(model[1].num_batches_tracked.item()),
    )
    assert sorted(seen) == [1, 1, 2, 2, 3, 3]


def gpt_loss(model, step: int, rank: int) -> torch.Tensor:
    tokens = torch.randint(0, 256, (4, 17), generator=torch.Generator().manual_seed(10 * step + rank))
    return model(tokens)


@pytest.mark.parametrize("two_sided", (False, True))
def test_gpt_with_tied_embeddings(two_sided):
    """Catches a tied weight whose two gradients are not summed, or that is reduced before the second has arrived."""
    model = Gpt(GptConfig(layers=2, width=32, context=16))
    assert model.output.weight is model.token_embedding.weight
    assert_trains_like_plain(model, gpt_loss, two_sided=two_sided)


class Branches(nn.Module):
    """Branch i is used by rank i only; one more by none. `frozen` takes part, and does not change."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.frozen = nn.Linear(6, 6)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor, branch: int) -> torch.Tensor:
        return self.head(self.frozen(self.branches[branch](x))).square().mean()


def branch_loss(model, step: int, rank: int) -> torch.Tensor:
    return model(numbers(4, 6, step=step, rank=rank), rank)


@pytest.mark.parametrize("page_numel", (1, 100_000))
@pytest.mark.parametrize("stage", range(4))
def test_parameters_that_some_ranks_or_none_use(stage, page_numel):
    """Catches a hang when graphs differ, a mean over the ranks that have a gradient only, weight decay on what has no
    gradient."""
    model = seeded(Branches)
    config = paged_config(zero_optimization={"stage": stage}, zeropage={"page_numel": page_numel})
    assert_trains_like_plain(model, branch_loss, config=config)
    ended = engine_run(model, branch_loss, 2, 4, config=config)
    names = [name for name, p in model.named_parameters() for _ in range(p.numel())]
    untouched = torch.tensor([name.startswith(("branches.2", "frozen")) for name in names])
    before = flat_parameters(model)
    assert torch.equal(ended[untouched], before[untouched])
    assert (ended[~untouched] != before[~untouched]).float().mean() > 0.9


class Experts(nn.Module):
    """Each token goes to the expert that the router prefers; which ones are used differs per rank and step."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(4, 6)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, choice = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for index in choice.unique().tolist():
            taken = choice == index
            out[taken] = self.experts[index](x[taken]) * weights[taken, None]
        return out


@pytest.mark.parametrize("world", (2, 4))
def test_mixture_of_experts(world):
    """Catches gathers or reductions that wait for ranks which do not use that expert."""
    assert_trains_like_plain(seeded(Experts), square_loss(3, 4), world=world, steps=8)


@pytest.mark.parametrize("stage", (1, 2))
def test_experts_over_a_network_where_parameters_are_whole(stage):
    """Catches reductions that depend on what each rank's graph reached, with every collective delayed at random."""
    config = paged_config(zero_optimization={"stage": stage})
    assert_trains_like_plain(
        seeded(Experts), square_loss(3, 4), world=4, steps=8, config=config, two_sided=True, max_delay_us=200
    )


def test_experts_over_a_network_end_with_a_named_error():
    """Catches a hang where gathers need all ranks and their choices differ: the error names the page of a rank."""
    with pytest.raises((zeropage.errors.PeerError, zeropage.errors.TimeoutError), match=r"experts\.\d\.(weight|bias)"):
        engine_run(seeded(Experts), square_loss(3, 4), 2, 8, two_sided=True, timeout_s=2)


def train_experts_as_process(timeout_ms: int) -> str:
    """One rank over gloo, in a separate process; returns how it ended."""
    config = paged_config(zeropage={"communicator": "c10d", "timeout_ms": timeout_ms})
    engine, *_ = zeropage.initialize(model=seeded(Experts), config=config)
    try:
        for step in range(8):
            engine.backward(square_loss(3, 4)(engine, step, engine.global_rank))
            engine.step()
    except zeropage.errors.ZeropageError as error:
        return f"{type(error).__name__}: {error}"
    return "trained"


def test_experts_over_gloo_end_with_a_named_error(tmp_path):
    """Catches a hang, or an error without a name, of real process groups whose ranks gather different pages."""
    for ended in run_processes(
        2, "test_models", "train_experts_as_process", json.dumps({"timeout_ms": 3000}), tmp_path
    ):
        assert re.match(r"(Peer|Timeout)Error: .*", ended)
        assert re.search(r"experts\.\d\.(weight|bias)", ended)


def test_half_of_the_parameters_in_the_optimizer():
    """Catches parameters that are updated, or whose gradients are kept, although no optimizer was given them."""

    base = small_net()
    before = flat_parameters(base)

    def run(rank, communicator):
        model = copy.deepcopy(base)
        given = [*model.expand.parameters(), *model.norms.parameters()]
        engine, *_ = zeropage.initialize(model=model, model_parameters=given, config=paged_config())
        for step in range(3):
            engine.backward(engine(*token_batch(step)))
            engine.step()
        return flat_parameters(model)

    given = torch.tensor(
        [name.startswith(("expand", "norms")) for name, p in base.named_parameters() for _ in range(p.numel())]
    )
    for after in zeropage.testing.run_ranks(2, run):
        assert torch.equal(before[~given], after[~given])
        assert (before[given] != after[given]).float().mean() > 0.9
