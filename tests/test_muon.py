"""Muon by the configuration and as torch's object: one update per step, of whole matrices, the same bits at every
stage. The oracle is torch.optim.Muon, with torch.optim.AdamW for the rest, in one process."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from training import config_of, flat_parameters, part_of_batch, small_net, token_batch

import zeropage
from zeropage._C import as_matrices, orthogonal
from zeropage.errors import ConfigError
from zeropage.muon import takes_muon
from zeropage.testing import run_ranks

STEPS = 3
LR, ADAM_LR, DECAY = 0.02, 1e-3, 0.1
SECTION: dict[str, Any] = {
    "type": "Muon",
    "params": {"lr": LR, "adam_lr": ADAM_LR, "weight_decay": DECAY, "ns_method": "standard", "eps": 1e-4},
}


def settings(stage: int, params: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    own = {"page_numel": 5000, **sections.pop("zeropage", {})}
    made = config_of(stage, clipping=sections.pop("clipping", 0.0), zeropage=own, **sections)
    return {**made, "optimizer": {"type": "Muon", "params": {**SECTION["params"], **(params or {})}}}


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    return parameter.dim() == 2 and "embed" not in name


def plain_run(steps: int = STEPS, parts: int = 2, **of_muon: Any) -> torch.Tensor:
    """The mean over `parts` parts of each batch, whose gradients are summed one after the other."""
    model = small_net()
    named = list(model.named_parameters())
    muon = torch.optim.Muon([p for name, p in named if is_matrix(name, p)], lr=LR, weight_decay=DECAY, **of_muon)
    adam = torch.optim.AdamW(
        [p for name, p in named if not is_matrix(name, p)], lr=ADAM_LR, weight_decay=DECAY, betas=(0.9, 0.95), eps=1e-4
    )
    for step in range(steps):
        model.zero_grad()
        for part in range(parts):
            (model(*part_of_batch(token_batch(step), parts, part)) / parts).backward()
        muon.step()
        adam.step()
    return flat_parameters(model)


def engine_run(
    config: dict[str, Any],
    world: int = 2,
    steps: range = range(STEPS),
    model: nn.Module | None = None,
    before: Callable[[Any], None] = lambda engine: None,
    after: Callable[[Any], Any] = lambda engine: None,
    optimizer: Callable[[nn.Module], Any] = lambda model: None,
) -> list[tuple[torch.Tensor, Any]]:
    """(parameters, what `after` returned) of each rank."""
    model = model or small_net()

    def run(rank: int, communicator: Any) -> tuple[torch.Tensor, Any]:
        own = copy.deepcopy(model)
        engine = zeropage.initialize(model=own, optimizer=optimizer(own), config=config)[0]
        before(engine)
        accumulation = config["gradient_accumulation_steps"]
        for step in steps:
            for micro in range(accumulation):
                engine.backward(engine(*part_of_batch(token_batch(step), world, rank, micro, accumulation)))
                engine.step()
        return flat_parameters(engine.module), after(engine)

    return run_ranks(world, run)


@pytest.fixture
def expected() -> torch.Tensor:
    """Computed for each test, because products in bf16 depend on the number of threads, which conftest.py sets for each
    test."""
    return plain_run()


@pytest.mark.parametrize(("stage", "page_numel"), ((0, 5000), (1, 5000), (2, 1), (3, 5000), (3, 100_000)))
def test_bits_of_torch(stage, page_numel, expected):
    """Catches parts of a matrix that are orthogonalised separately, a norm of padding, a parameter in the wrong half,
    and an owner's result that other ranks do not get."""
    for parameters, _ in engine_run(settings(stage, zeropage={"page_numel": page_numel})):
        assert torch.equal(parameters, expected)
    assert not torch.equal(expected, flat_parameters(small_net()))


@pytest.mark.parametrize("stage", (0, 3))
def test_torchs_own_object(stage):
    """Catches an object that is refused, or whose own options are not used."""
    model = nn.Sequential(nn.Linear(24, 16, bias=False), nn.Linear(16, 8, bias=False), nn.Linear(8, 40, bias=False))
    x = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    config = config_of(stage, batch=2, clipping=0.0)
    del config["optimizer"]

    def make(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Muon(parameters, lr=0.1, adjust_lr_fn="match_rms_adamw", nesterov=False, ns_steps=3)

    plain = copy.deepcopy(model)
    muon = make(plain.parameters())
    for _ in range(STEPS):
        muon.zero_grad()
        for part in x.chunk(2):
            (plain(part).square().mean() / 2).backward()
        muon.step()

    def run(rank: int, communicator: Any) -> torch.Tensor:
        own = copy.deepcopy(model)
        engine = zeropage.initialize(model=own, optimizer=make(own.parameters()), config=config)[0]
        for _ in range(STEPS):
            engine.backward(engine(x.chunk(2)[rank]).square().mean())
            engine.step()
        return flat_parameters(engine.module)

    for parameters in run_ranks(2, run):
        assert torch.equal(parameters, flat_parameters(plain))


@pytest.mark.parametrize("stage", (0, 1, 2, 3))
def test_one_update_per_step(stage):
    """Catches an update per micro batch, or one that takes the last micro batch's gradient for the sum."""
    config = settings(stage, gradient_accumulation_steps=2) | {"gradient_accumulation_steps": 2, "train_batch_size": 8}
    found = engine_run(config)
    # One process adds micro batches in another order; Newton-Schulz in bf16 amplifies the last bits.
    difference = (found[0][0] - plain_run(parts=4)).abs()
    assert difference.mean().item() < 2e-4 and torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("stage", (0, 1, 2, 3))
def test_gradients_are_clipped_before(stage):
    """Catches clipping of the orthogonal update, which has nothing to do with the norm of the gradient."""

    def norm_of_momentum(engine: Any) -> float:
        state = engine.optimizer.state_dict()["state"].values()
        return (
            sum((each["momentum_buffer"] / 0.05).square().sum() for each in state if "momentum_buffer" in each)
            .sqrt()
            .item()
        )

    free = engine_run(settings(stage), steps=range(1), after=norm_of_momentum)[0][1]
    clipped = engine_run(
        settings(stage, clipping=1e-3), steps=range(1), after=lambda e: (norm_of_momentum(e), e.get_global_grad_norm())
    )[0][1]
    assert abs(clipped[0] / (free * 1e-3 / clipped[1]) - 1) < 1e-3


@pytest.mark.parametrize("params", ({"ns_method": "gram"}, {"ns_dtype": "fp32"}))
def test_other_iterations_have_the_same_bits_at_all_stages(params):
    """Catches an iteration that depends on who computes it."""
    first, *others = (engine_run(settings(stage, params))[0][0] for stage in (0, 2, 3))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("in_memory", (False, True))
@pytest.mark.parametrize("where", ("cpu", "nvme"))
@pytest.mark.parametrize("stage", (1, 2, 3))
def test_masters_elsewhere(stage, where, in_memory, expected, tmp_path):
    """Catches an update that is not written back to memory of the host or to a drive, and other bits than without
    offload, wherever the configuration puts the momenta."""
    target = {"device": where, **({"nvme_path": str(tmp_path)} if where == "nvme" else {})}
    zero = {"offload_optimizer": target, "save_muon_momentum_buffer_in_memory": in_memory}
    for parameters, _ in engine_run(settings(stage, zero_optimization=zero)):
        assert torch.equal(parameters, expected)


@pytest.mark.parametrize("where", ("cpu", "nvme"))
@pytest.mark.parametrize("stage", (1, 2, 3))
def test_masters_of_bf16_elsewhere(stage, where, tmp_path):
    """Catches fp32 masters that are lost, or rounded, between memory of the host, or a drive, and the update."""
    target = {"device": where, **({"nvme_path": str(tmp_path)} if where == "nvme" else {})}
    bf16 = {"bf16": {"enabled": True}}
    here = engine_run(settings(stage, **bf16))
    elsewhere = engine_run(settings(stage, zero_optimization={"offload_optimizer": target}, **bf16))
    for (expected, _), (parameters, _) in zip(here, elsewhere, strict=True):
        assert torch.equal(parameters, expected)


@pytest.mark.parametrize("where", ("cpu", "nvme"))
def test_masters_and_parameters_elsewhere(where, expected, tmp_path):
    """Catches whole parameters that are not read from, or written to, where offload_param keeps them."""
    target = {"device": where, **({"nvme_path": str(tmp_path)} if where == "nvme" else {})}
    zero = {"offload_optimizer": target, "offload_param": target}
    for parameters, _ in engine_run(settings(3, zero_optimization=zero)):
        assert torch.equal(parameters, expected)


@pytest.mark.parametrize(("stage", "world"), ((0, 1), (1, 3), (3, 2)))
def test_it_continues_from_a_checkpoint(stage, world, tmp_path):
    """Catches a momentum that is lost, or is another matrix's, at another stage and world size."""
    engine_run(settings(2), steps=range(2), after=lambda engine: engine.save_checkpoint(tmp_path))
    straight = engine_run(settings(2), steps=range(2), after=lambda engine: engine.optimizer.state_dict())[0][1]

    def load(engine: Any) -> None:
        engine.load_checkpoint(tmp_path)

    config = settings(stage) | {"train_batch_size": 6 if world == 3 else 8}
    for _, state in engine_run(
        config, world=world, steps=range(0), before=load, after=lambda engine: engine.optimizer.state_dict()
    ):
        for position, each in straight["state"].items():
            assert all(torch.equal(state["state"][position][key], value) for key, value in each.items())


def test_continuing_has_the_same_bits(expected, tmp_path):
    """Catches state that is loaded in another form, and then trains differently."""
    engine_run(settings(3), steps=range(2), after=lambda engine: engine.save_checkpoint(tmp_path))
    for parameters, _ in engine_run(
        settings(3), steps=range(2, STEPS), before=lambda engine: engine.load_checkpoint(tmp_path)
    ):
        assert torch.equal(parameters, expected)


def test_state_is_half_on_two_ranks():
    """Catches momenta that every rank keeps: of 36,000 elements, and two moments of 4,000, each rank has about half."""

    def optimizer_bytes(engine: Any) -> list[int]:
        return [rank["optimizer"] for rank in engine.memory_report().ranks]

    whole = engine_run(settings(0), after=optimizer_bytes)[0][1]
    parts = engine_run(settings(1), after=optimizer_bytes)[0][1]
    assert sum(parts) < 1.02 * whole[0] and max(parts) < 0.56 * whole[0]


@pytest.mark.parametrize("offloaded", (False, True))
@pytest.mark.parametrize("stage", range(4))
def test_the_memory_table_says_what_is_kept(stage, offloaded):
    """Catches a formula of the memory table without Muon's momenta, or with those of all ranks, and bytes that are
    counted at another place than the formula has them."""
    zero = {"offload_optimizer": {"device": "cpu"}} if offloaded else {}

    def optimizer_bytes(engine: Any) -> tuple[float, int, str]:
        memory = engine.memory_report()
        counted = memory.host if offloaded else memory.ranks
        formula = memory.formula_host if offloaded else memory.formula
        other = memory.ranks if offloaded else memory.host
        assert all(rank["optimizer"] == 0 for rank in other)
        return sum(rank["optimizer"] for rank in counted) / len(counted), formula.optimizer, memory.table()

    for _, (counted, formula, table) in engine_run(settings(stage, zero_optimization=zero), after=optimizer_bytes):
        assert counted == pytest.approx(formula, rel=0.02) and formula > 4 * 36_000 / 2
        assert "optimizer" in table


def test_which_half():
    """Catches a tagging that differs from DeepSpeed's: matrices, without embeddings and the output layer, unless an
    attribute of the parameter decides."""
    matrix, vector = torch.zeros(4, 4), torch.zeros(4)
    assert takes_muon("layers.0.mlp.weight", matrix) and takes_muon("conv.weight", torch.zeros(4, 3, 2, 2))
    assert not takes_muon("norm.weight", vector)
    assert not takes_muon("wte.embedding.weight", matrix) and not takes_muon("lm_head.weight", matrix)
    matrix.use_muon = False
    assert not takes_muon("layers.0.mlp.weight", matrix)
    matrix.use_muon = True
    assert takes_muon("lm_head.weight", matrix)


def test_defaults_are_deepspeeds():
    """Catches other learning rates, momenta or betas than a configuration without them has there; and groups that are
    not split."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(3, 4, 2))
    config = {"train_batch_size": 1, "optimizer": {"type": "Muon"}}
    matrices, kernels, vectors = zeropage.initialize(model=model, config=config)[1].param_groups
    assert (matrices["lr"], matrices["momentum"], matrices["weight_decay"], matrices["ns_method"]) == (
        0.02,
        0.95,
        0.0,
        "gram",
    )
    assert (vectors["lr"], tuple(vectors["betas"]), vectors["eps"], vectors["weight_decay"]) == (
        3e-4,
        (0.9, 0.95),
        1e-10,
        0.0,
    )
    assert [len(group["params"]) for group in (matrices, kernels, vectors)] == [1, 1, 2]


def formula(u: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz in double."""
    x = u.double() / u.double().norm()
    x = x.T if u.shape[0] > u.shape[1] else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if u.shape[0] > u.shape[1] else x


@pytest.mark.parametrize("shape", ((32, 32), (16, 80), (70, 24)))
@pytest.mark.parametrize(
    ("method", "dtype", "bound"), (("standard", None, 0.03), ("gram", None, 1e-5), ("standard", torch.float32, 1e-5))
)
def test_the_formula(method, dtype, bound, shape):
    """Catches other coefficients, a missing transposition, and rounding that adds up."""
    u = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found, exact = orthogonal(u, method, 5, dtype), formula(u)
    assert ((found.double() - exact).norm() / exact.norm()).item() < bound


def test_what_counts_as_a_matrix():
    """Catches a convolution that is treated as a stack of matrices, experts that are flattened, and heads that are
    mixed."""
    assert [list(each.shape) for each in as_matrices(torch.zeros(4, 3, 2), 0)] == [[3, 2]] * 4
    assert [list(each.shape) for each in as_matrices(torch.zeros(4, 3, 2), 1)] == [[4, 6]]
    assert [list(each.shape) for each in as_matrices(torch.zeros(4, 3, 2, 5), 0)] == [[4, 30]]
    heads = as_matrices(torch.arange(8.0).reshape(4, 2), 2)
    assert torch.equal(heads[1], torch.tensor([[4.0, 5.0], [6.0, 7.0]]))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"num_attention_heads": 4, "num_key_value_heads": 2})()
        self.q_proj, self.k_proj = nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.q_proj(x).sum(-1) * self.k_proj(x).square().sum(-1)).mean()


def test_heads_by_themselves():
    """Catches heads that are orthogonalised together, or a model without any that is trained as if the key were not
    there."""
    model = Attention()
    before = copy.deepcopy(model)
    config = {
        "train_batch_size": 1,
        "optimizer": {
            "type": "Muon",
            "params": {"lr": 1.0, "per_head_muon": True, "nesterov": False, "ns_dtype": "fp32"},
        },
    }
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    engine = zeropage.initialize(model=model, config=config)[0]
    engine.backward(engine(x))
    engine.step()
    before(x).backward()
    for layer, heads in (("q_proj", 4), ("k_proj", 2)):
        old = getattr(before, layer).weight
        expected = torch.cat([formula(part) for part in old.grad.chunk(heads)])
        assert ((old - getattr(model, layer).weight).double() - expected).abs().max().item() < 1e-5
    with pytest.raises(ConfigError, match="per_head_muon.*muon_heads"):
        zeropage.initialize(model=nn.Linear(4, 4), config=config)
