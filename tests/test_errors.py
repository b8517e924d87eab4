"""Mistakes of users and failures of machines: every rank raises soon, with a message that has advice, and no step is
half applied."""

import copy
import re
import time

import pytest
import torch
from processes import messages_after_kill, update_until_killed
from torch import nn
from training import config_of, flat_parameters, paged_config, part_of_batch, small_net, token_batch

import zeropage
from zeropage.errors import ConfigError, PeerError, TimeoutError, UsageError, ZeropageError
from zeropage.testing import run_ranks


def errors_on_ranks(function, world: int = 2, timeout_s: float = 20) -> list[BaseException | None]:
    """What function(rank) raises on each rank. Ranks that fail do not end the others: each must raise its own error."""

    def run(rank, communicator):
        try:
            function(rank)
        except Exception as error:
            return error
        return None

    return run_ranks(world, run, timeout_s=timeout_s)


def views_of_one_tensor() -> nn.Module:
    model = nn.Linear(4, 4, bias=False)
    model.other = nn.Parameter(model.weight.detach()[1:3])
    return model


def complex_model() -> nn.Module:
    model = nn.Linear(2, 2)
    model.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    return model


BAD_MODELS = {
    "no parameters": (nn.ReLU, r"no parameters.*registered"),
    "meta device": (lambda: nn.Linear(2, 2, device="meta"), r"weight.*meta.*to_empty"),
    "float64": (lambda: nn.Linear(2, 2).double(), r"weight.*float64.*model\.float\(\)"),
    "complex": (complex_model, r"phase.*complex"),
    "shared memory": (views_of_one_tensor, r"'weight' and 'other'.*share memory.*same Parameter"),
    "lazy": (lambda: nn.LazyLinear(2), r"weight.*(forward|batch)"),
    "sparse": (lambda: sparse_parameter(), r"weight.*sparse.*dense"),  # noqa: PLW0108 (it is defined below)
}


def sparse_parameter() -> nn.Module:
    model = nn.Module()
    model.weight = nn.Parameter(torch.eye(3).to_sparse())
    return model


@pytest.mark.parametrize("stage", (0, 3))
@pytest.mark.parametrize("name", BAD_MODELS)
def test_models_that_cannot_be_trained(name, stage):
    """Catches a model that is taken and fails later, or trains in part."""
    make, message = BAD_MODELS[name]
    with pytest.raises(ConfigError, match=message):
        zeropage.initialize(model=make(), config=config_of(stage))


def two_layers(second: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), second)


DIFFERENCES = {
    "shape": (lambda: two_layers(nn.Linear(4, 2)), lambda: two_layers(nn.Linear(4, 3)), r"1\.weight"),
    "one more": (lambda: two_layers(nn.ReLU()), lambda: two_layers(nn.LayerNorm(4)), r"1\.weight"),
    "frozen": (
        lambda: two_layers(nn.LayerNorm(4)),
        lambda: two_layers(nn.LayerNorm(4).requires_grad_(False)),
        r"1\.weight.*frozen",
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_ranks_with_different_models(name):
    """Catches ranks that sum gradients of different parameters. Every rank shows the first difference."""
    make, make_other, difference = DIFFERENCES[name]
    models = [make(), make_other(), make()]
    failures = errors_on_ranks(
        lambda rank: zeropage.initialize(model=models[rank], config=config_of(2, batch=6)), world=3
    )
    for failure in failures:
        assert isinstance(failure, PeerError)
        assert re.search(rf"rank\(s\) 1 differ from rank 0; rank 0 has .*rank 1 has .*{difference}", str(failure))


def test_ranks_with_different_configurations():
    """Catches ranks that would update with different hyperparameters."""
    models = [small_net(), small_net()]
    failures = errors_on_ranks(
        lambda rank: zeropage.initialize(model=models[rank], config=config_of(2, clipping=0.5 + rank))
    )
    for failure in failures:
        assert isinstance(failure, PeerError)
        assert re.search(r"rank 0 has .*gradient_clipping.*0\.5.*rank 1 has .*gradient_clipping.*1\.5", str(failure))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("no/such/ds_config.json", r"no config file 'no/such/ds_config\.json'"),
        (config_of(0, batch=7), r"train_batch_size.*multiple of world size 2.*6 or 8"),
        (config_of(0, batch=8, accumulation=3), r"gradient_accumulation_steps"),
        ({**config_of(0), "zero_optimization": {"stagee": 1}}, r"stagee.*stage"),
        ({**config_of(0), "fp16": {"enabled": True}, "bf16": {"enabled": True}}, r"fp16.*bf16|bf16.*fp16"),
    ],
)
def test_configurations_that_cannot_be_used(config, message):
    """Catches a rank that continues, or waits, when the configuration is refused."""
    models = [small_net(), small_net()]
    for failure in errors_on_ranks(lambda rank: zeropage.initialize(model=models[rank], config=config)):
        assert isinstance(failure, ConfigError)
        assert re.search(message, str(failure))


MISUSES = {
    "not scalar": (
        lambda engine, model: engine.backward(model(torch.ones(1, 2))),
        r"a scalar tensor.*got 2.*loss\.mean",
    ),
    "no graph": (
        lambda engine, model: engine.backward(model(torch.ones(1, 2)).sum().detach()),
        r"does not depend.*no_grad",
    ),
    "not a tensor": (lambda engine, model: engine.backward(1.0), r"scalar tensor; got float"),
    "step first": (lambda engine, model: engine.step(), r"before backward.*engine\.backward"),
    "step twice": (
        lambda engine, model: (engine.backward(model(torch.ones(1, 2)).sum()), engine.step(), engine.step()),
        r"before back",
    ),
    "other tensors": (lambda engine, model: engine._core.gather([torch.ones(2)]), r"not a parameter of this engine"),
    "closed ticket": (lambda engine, model: engine._core.release(77, -1), r"ticket 77 is not open"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_calls_that_make_no_sense(name):
    """Catches wrong calls that pass, and train nothing or something else."""
    misuse, message = MISUSES[name]
    engine, *_ = zeropage.initialize(model=nn.Linear(2, 2), config=config_of(3))
    with pytest.raises(UsageError, match=message):
        misuse(engine, engine)


@pytest.mark.parametrize("stage", (0, 3))
def test_sparse_gradients(stage):
    """Catches gradients of an embedding that are silently dropped or made dense."""
    engine, *_ = zeropage.initialize(model=nn.Embedding(5, 3, sparse=True), config=config_of(stage))
    with pytest.raises(UsageError, match=r"'weight' is sparse.*sparse=False"):
        engine.backward(engine(torch.tensor([1, 2])).sum())


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"fp16": {"enabled": True, "initial_scale_power": 1, "hysteresis": 1}},
            r"loss scale.*in step 2 first in parameter '1\.weight'",
        ),
        (
            {"fp16": {"enabled": True, "loss_scale": 1}, "zeropage": {"max_consecutive_skips": 2}},
            r"2 steps in a row.*steps 1 to 2, in the last one first in parameter '1\.weight'",
        ),
    ],
)
def test_overflows_without_end(sections, message):
    """Catches a run that skips every step for ever: all ranks end with an error that names the step, and of the
    parameters that overflowed the model's first, in whichever rank's part that is."""
    base = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4)))

    def spoil_the_end(gradient):
        """Of a page's last element, which is in the second rank's part."""
        gradient = gradient.clone()
        gradient[-1, -1] = torch.inf
        return gradient

    def run(rank):
        own = {"page_numel": 1, **sections.get("zeropage", {})}
        engine, *_ = zeropage.initialize(
            model=copy.deepcopy(base), config=config_of(2, **(sections | {"zeropage": own}))
        )
        if rank == 0:
            engine.module[1].weight.register_hook(spoil_the_end)
        engine.module[2].weight.register_hook(lambda gradient: gradient * torch.inf)
        for _ in range(10):
            engine.backward(engine(torch.ones(1, 64, dtype=torch.half)).sum())
            engine.step()

    for failure in errors_on_ranks(run):
        assert isinstance(failure, ZeropageError)
        assert re.search(message, str(failure))


class Broken(Exception):
    """What a rank's own code raises."""


def fail_in_forward(engine, inputs):
    raise Broken


def fail_in_backward(engine, inputs):
    def raise_broken(gradient):
        raise Broken

    loss = engine(*inputs)
    engine.module.embedding.weight.register_hook(raise_broken)  # the last gradient: most of the backward is done
    engine.backward(loss)


def fail_before_step(engine, inputs):
    engine.backward(engine(*inputs))
    raise Broken


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("failing", (fail_in_forward, fail_in_backward, fail_before_step))
def test_a_rank_that_fails_leaves_no_half_applied_step(failing, stage):
    """Catches survivors that wait for ever, or apply a step that the failed rank did not: they raise within the
    timeout, and hold the parameters of the last step that all ranks took."""
    base = small_net()
    timeout_s = 2.0  # waits end after half of it
    before, after = [None, None], [None, None]

    def run(rank):
        config = config_of(stage, zero_optimization={"stage3_max_live_parameters": 1}, zeropage={"page_numel": 1})
        engine, *_ = zeropage.initialize(model=copy.deepcopy(base), config=config)
        engine.backward(engine(*part_of_batch(token_batch(0), 2, rank)))
        engine.step()
        before[rank] = flat_parameters(engine.module)
        start = time.monotonic()
        try:
            inputs = part_of_batch(token_batch(1), 2, rank)
            if rank == 1:
                failing(engine, inputs)
            engine.backward(engine(*inputs))
            engine.step()
        finally:
            assert time.monotonic() - start < timeout_s
            after[rank] = flat_parameters(engine.module)

    survivor, failed = errors_on_ranks(run, timeout_s=timeout_s)
    assert isinstance(failed, Broken)
    assert isinstance(survivor, (PeerError, TimeoutError))
    assert "rank 1" in str(survivor)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def train_until_killed(folder: str) -> str:
    """A rank that trains until a peer is killed."""
    engine, *_ = zeropage.initialize(model=small_net(), config=paged_config(zeropage={"timeout_ms": 20_000}))

    def update(step: int) -> None:
        engine.backward(engine(*part_of_batch(token_batch(step), 2, engine.global_rank)))
        engine.step()

    return update_until_killed(engine.global_rank, folder, update)


def test_a_rank_that_is_killed(tmp_path):
    """Catches survivors that wait for the timeout, or for ever, when a process has ended: they must name it
    immediately."""
    (message,) = messages_after_kill(2, "test_errors", tmp_path, killed=1)
    assert re.match(r"PeerError: .*rank 1", message)
