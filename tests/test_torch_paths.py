"""Parts of torch that read dispatch keys themselves: constructors from a tensor, and operators that are dispatched
in Python."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from processes import run_processes
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from training import config_of, flat_parameters

import zeropage
from zeropage.testing import run_ranks

IN_SHARDS = config_of(
    3,
    batch=2,
    clipping=0.0,
    eps=1e-4,
    zero_optimization={"stage3_max_live_parameters": 2000},
    zeropage={"page_numel": 1},
)


def check_constructors(parameter: torch.Tensor) -> None:
    assert torch.equal(parameter.new_tensor([1.5, 2.5]), torch.tensor([1.5, 2.5]))
    assert parameter.new_tensor(2, device="cpu").item() == 2
    assert parameter.new_tensor([1], dtype=torch.float64).dtype == torch.float64
    assert parameter.new(2, 3).shape == (2, 3) and parameter.new().numel() == 0
    assert torch.equal(parameter.new([1.0, 2.0]), torch.tensor([1.0, 2.0]))
    assert parameter.t().new(parameter.shape).dtype == torch.float32


def test_constructors_from_a_sharded_parameter():
    """Catches 'DispatchKey DeferredInit doesn't correspond to a device', and trunc_normal_ that ends so."""
    base = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    plain = copy.deepcopy(base)
    torch.manual_seed(3)
    nn.init.trunc_normal_(plain[1].weight, std=0.5)
    turn = threading.Lock()  # ranks are threads, and share torch's random numbers

    def run(rank: int, communicator: Any) -> torch.Tensor:
        engine = zeropage.initialize(model=copy.deepcopy(base), config=config_of(3, batch=2))[0]
        weight = engine.module[1].weight
        check_constructors(weight)
        with turn:
            torch.manual_seed(3)
            nn.init.trunc_normal_(weight, std=0.5)
        with zeropage.zero.GatheredParameters([weight]):
            return weight.detach().clone()

    for weight in run_ranks(2, run):
        assert torch.equal(weight, plain[1].weight)


class Biased(nn.Module):
    """flex_attention with a learned bias, or a branch that the data choose."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.bias = nn.Parameter(torch.randn(2, 8, 8))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        query, value = (layer(x).view(1, 2, 8, 8) for layer in (self.first, self.second))
        return (
            flex_attention(query, query, value, score_mod=lambda score, b, h, i, j: score + self.bias[h, i, j])
            .square()
            .mean()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (
            torch.cond(x.sum() > 0, lambda x: torch.relu(self.first(x)), lambda x: torch.sin(self.second(x)), (x,))
            .square()
            .mean()
        )


def inputs(step: int) -> torch.Tensor:
    """Of positive and negative sum in turn."""
    return torch.rand(8, 16, generator=torch.Generator().manual_seed(step)) * (1 - 2 * (step % 2))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_with_a_sharded_bias():
    """Catches 'could not find kernel for HigherOrderOperator'. Torch has no backward of it on CPUs."""
    torch.manual_seed(0)
    base = Biased()
    with torch.no_grad():
        expected = base.attend(inputs(0))
    turn = threading.Lock()  # torch's tracing is not for two threads

    def run(rank: int, communicator: Any) -> torch.Tensor:
        engine = zeropage.initialize(model=copy.deepcopy(base), config=IN_SHARDS)[0]
        with turn, torch.no_grad():
            return engine.module.attend(inputs(0))

    for found in run_ranks(2, run):
        assert torch.allclose(found, expected)


def make_cond() -> nn.Module:
    return Biased()


def make_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=8,
        num_labels=8,
    )
    return ViTForImageClassification(config)


def make_gemma() -> nn.Module:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        vocab_size=64,
    )
    return Gemma3ForCausalLM(config)


def loss_of_vit(model: Any, step: int) -> torch.Tensor:
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(step))
    return model(pixel_values=images, labels=torch.tensor([1, 2])).loss


def loss_of_gemma(model: Any, step: int) -> torch.Tensor:
    tokens = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(step))
    return model(input_ids=tokens, labels=tokens).loss


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, int], torch.Tensor]]] = {
    "cond": (make_cond, lambda model, step: model(inputs(step))),
    "vit": (make_vit, loss_of_vit),
    "gemma": (make_gemma, loss_of_gemma),
}


def build_and_train() -> dict[str, torch.Tensor]:
    """One rank, a process: models that are built in shards."""
    trained = {}
    for name, (make, loss_of) in MODELS.items():
        torch.manual_seed(0)  # truncated normals are drawn until all fit, as often on all ranks
        with zeropage.zero.Init(config_dict_or_path=IN_SHARDS):
            check_constructors(nn.Parameter(torch.ones(64, 64)))
            model = make()
        engine = zeropage.initialize(model=model, config=IN_SHARDS)[0]
        for step in range(2):
            engine.backward(loss_of(engine, step))
            engine.step()
        trained[name] = flat_parameters(model)
        engine.destroy()
    return trained


def test_models_that_are_built_and_trained_in_shards(tmp_path):
    """Catches models that cannot be built in zero.Init, since they draw truncated normals, and branches of torch.cond
    without gradients."""
    ranks = run_processes(2, "test_torch_paths", "build_and_train", "{}", tmp_path, timeout_s=300)
    for name, (make, loss_of) in MODELS.items():
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01, eps=1e-4)
        for step in range(2):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
        for trained in ranks:
            assert (trained[name] - flat_parameters(model)).abs().max().item() < 1e-5, name


def linear_shapes(profiler: torch.profiler.profile) -> list[Any]:
    return [event.input_shapes for event in profiler.events() if event.name in ("aten::linear", "aten::addmm")]


def make_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 40))


def start_profiler() -> torch.profiler.profile:
    profiler = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True, with_stack=True
    )
    profiler.start()
    return profiler


def error_of_pointer(weight: torch.Tensor) -> str:
    try:
        weight.data_ptr()
    except RuntimeError as error:
        return str(error)
    return "none"


def profile_step() -> dict[str, Any]:
    """One rank, a process; rank 1 alone has a profiler."""
    engine = zeropage.initialize(model=make_layers(), config=IN_SHARDS)[0]
    weight = engine.module[0].weight
    before = error_of_pointer(weight)
    profiler = start_profiler() if engine.global_rank == 1 else None
    during = error_of_pointer(weight)
    engine.backward(engine(torch.ones(4, 32)).square().mean())
    engine.step()
    if profiler is not None:
        profiler.stop()
    errors = [before, during, error_of_pointer(weight)]
    return {
        "errors": errors,
        "parameters": flat_parameters(engine.module),
        "shapes": profiler and linear_shapes(profiler),
    }


def test_profilers(tmp_path):
    """Catches a step that ends with 'not resident' under with_stack=True, and shapes of other operators' inputs under
    record_shapes=True."""
    plain = make_layers()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.01, eps=1e-4)
    profiler = start_profiler()
    plain(torch.ones(4, 32)).square().mean().backward()
    profiler.stop()
    optimizer.step()
    ranks = run_processes(2, "test_torch_paths", "profile_step", "{}", tmp_path, timeout_s=120)
    for rank in ranks:
        assert (rank["parameters"] - flat_parameters(plain)).abs().max().item() < 1e-5
        assert (
            "not resident" in rank["errors"][0] and rank["errors"][1] != "none" and "not resident" in rank["errors"][2]
        )
    assert ranks[1]["shapes"] == linear_shapes(profiler)
