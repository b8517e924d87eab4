"""What users do with a model besides calling it works at stage 3 as it does with a plain one: two ranks, a page per
parameter, nothing kept gathered."""

import copy
import io
import threading

import pytest
import torch
from training import (
    DAMPING_EPS,
    LEARNING_RATE,
    WEIGHT_DECAY,
    assert_trains_like_plain,
    engine_run,
    flat_parameters,
    paged_config,
    part_of_batch,
    small_net,
    token_batch,
)

import zeropage
from zeropage.testing import run_ranks


def token_loss(model, step: int, rank: int) -> torch.Tensor:
    return model(*part_of_batch(token_batch(step), 2, rank))


def on_ranks(function, world: int = 2, config=None, **faults):
    """Calls function(engine, rank) with an engine of a small net on every rank."""
    base = small_net()

    def run(rank, communicator):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(base), config=config or paged_config())
        return function(engine, rank)

    return run_ranks(world, run, **faults)


def train_steps(engine, rank: int, steps: int = 2) -> None:
    for step in range(steps):
        engine.backward(token_loss(engine, step, rank))
        engine.step()


def test_reading_a_model():
    """Catches values that are wrong, or code that fails, when a model is read while most of it is absent."""
    expected = small_net()

    def read(engine, rank):
        model = engine.module
        copied = copy.deepcopy(model)
        assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), expected.parameters(), strict=True))
        assert str(model) == str(expected)
        assert str(model.tiny) == str(expected.tiny)
        state = engine.state_dict()
        assert list(state) == list(expected.state_dict())
        for name, value in expected.state_dict().items():
            assert state[name].shape == value.shape
            assert torch.equal(state[name], value)
        assert [x.item() for x in model.tiny] == [1.0, 1.0, 1.0]
        assert model.embedding.weight[3, 4].item() == expected.embedding.weight[3, 4].item()
        # What a copy holds is its own: it does not change with the engine.
        train_steps(engine, rank, 1)
        assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), expected.parameters(), strict=True))
        assert not torch.equal(model.tiny, copied.tiny)

    on_ranks(read)


def test_one_rank_alone_reads_and_evaluates():
    """Catches a gather that waits for ranks which do something else: rank 0 prints a weight and evaluates, rank 1 does
    not."""
    others_are_done = threading.Event()

    def read(engine, rank):
        train_steps(engine, rank)
        if rank == 0:
            assert "tensor(" in str(engine.module.expand[0].weight)
            with torch.no_grad():
                assert engine(*token_batch(7)).isfinite()
            others_are_done.set()
        else:
            assert others_are_done.wait(20)
        train_steps(engine, rank)

    on_ranks(read)


def test_raw_access_names_the_parameter():
    """Catches a null pointer, or garbage, in code that bypasses the operators."""

    def read(engine, rank):
        weight = engine.module.contract[1].weight
        raw_accesses = (
            weight.data_ptr,
            weight.tolist,
            weight.detach().numpy,
            weight.t().detach().numpy,
            weight.untyped_storage().data_ptr,
            lambda: torch.save(engine.module.state_dict(), io.BytesIO()),
        )
        for access in raw_accesses:
            with pytest.raises(RuntimeError, match=r"(contract\.1\.weight|tiny).*GatheredParameters"):
                access()
        with zeropage.zero.GatheredParameters(weight):
            assert weight.data_ptr() != 0
            assert weight.detach().numpy().shape == (64, 128)
        engine.module.tiny.sum()  # takes the only frame
        with pytest.raises(RuntimeError, match=r"contract\.1\.weight"):
            weight.data_ptr()

    on_ranks(read)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.share_memory_(), r"tiny.*share_memory\(\) before"),
        (lambda p: setattr(p, "data", torch.zeros(4)), r"tiny.*shape \[3\].*shape \[4\]"),
        (lambda p: setattr(p, "data", torch.zeros(3, 1)), r"tiny.*shape \[3\].*shape \[3, 1\]"),
    ],
)
def test_memory_exchanged_under_the_engine(spoil, message):
    """Catches training that continues with parameters that are no longer the engine's."""

    def exchange(engine, rank):
        with zeropage.zero.GatheredParameters(engine.module.tiny):
            spoil(engine.module.tiny)
        with pytest.raises(zeropage.errors.UsageError, match=message):
            engine(*token_batch(0))

    on_ranks(exchange)


def test_a_model_outlives_its_engine():
    """Catches trained values that are lost with the engine, and hooks or marks that remain after it."""

    def read(engine, rank):
        model = engine.module
        before = [parameter.detach().clone() for parameter in model.parameters()]
        engine.destroy()
        assert all(torch.equal(parameter, value) for parameter, value in zip(model.parameters(), before, strict=True))
        assert "Linear" in str(model)
        model.expand[0](torch.ones(1, model.expand[0].in_features)).sum().backward()
        assert model.expand[0].weight.grad.abs().sum() > 0

    on_ranks(read)


def test_parameters_of_another_type_are_refused():
    """Catches `module.double()` that is silently undone at the next step."""

    def change(engine, rank):
        engine.module.double()
        with pytest.raises(zeropage.errors.UsageError, match="is Double on cpu now"):
            engine(*token_batch(0))
        engine.module.float()
        engine(*token_batch(0))

    on_ranks(change)


@pytest.mark.parametrize("modifier_rank", (0, 1))
def test_gathered_parameters_edited_by_one_rank(modifier_rank):
    """Catches an edit that only the rank that made it has, or that the next step undoes."""

    def edit(engine, rank):
        weight = engine.module.expand[0].weight
        with zeropage.zero.GatheredParameters(weight, modifier_rank=modifier_rank):
            if rank == modifier_rank:
                with torch.no_grad():
                    weight.fill_(0.25)
        assert (weight == 0.25).all()
        train_steps(engine, rank)
        assert (weight - 0.25).abs().max().item() < 0.1
        return flat_parameters(engine.module)

    ended = on_ranks(edit)
    assert torch.equal(ended[0], ended[1])


def test_evaluation_between_steps():
    """Catches an evaluation that disturbs training: gradients, traces, or the modes of modules."""

    def loss_of(model, step, rank):
        model.eval()
        with torch.no_grad():
            before = model(*token_batch(50 + step))
        with torch.inference_mode():
            assert torch.equal(before, model(*token_batch(50 + step)))
        model.train()
        return token_loss(model, step, rank)

    assert_trains_like_plain(small_net(), loss_of)


def test_requires_grad_switched_off_and_on():
    """Catches weight decay or stale gradients on parameters that are frozen for a while."""

    def loss_of(model, step, rank):
        module = getattr(model, "module", model)
        module.expand.requires_grad_(step != 1)
        return token_loss(model, step, rank)

    assert_trains_like_plain(small_net(), loss_of)


def test_groups_with_rates_that_change():
    """Catches groups that share a rate, and rates written between steps that have no effect."""
    base = small_net()

    def groups_of(model):
        decayed = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() <= 1]
        return [{"params": decayed, "lr": 0.01}, {"params": others, "lr": 0.003, "weight_decay": 0.0}]

    def schedule(optimizer, step):
        optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
        optimizer.param_groups[1]["weight_decay"] = 0.1 * step

    plain = copy.deepcopy(base)
    optimizer = torch.optim.AdamW(groups_of(plain), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=DAMPING_EPS)
    for step in range(4):
        schedule(optimizer, step)
        optimizer.zero_grad()
        plain(*token_batch(step)).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()

    def run(rank, communicator):
        model = copy.deepcopy(base)
        engine, ours, *_ = zeropage.initialize(model=model, model_parameters=groups_of(model), config=paged_config())
        for step in range(4):
            schedule(ours, step)
            engine.backward(token_loss(engine, step, rank))
            engine.step()
        return flat_parameters(model)

    for found in run_ranks(2, run):
        assert (found - flat_parameters(plain)).abs().max().item() < 1e-5


def test_two_engines_take_turns():
    """Catches state that engines of one process share by mistake."""
    bases = [small_net(seed) for seed in (1, 2)]
    alone = [engine_run(base, token_loss, 2, 4) for base in bases]

    def run(rank, communicator):
        engines = [zeropage.initialize(model=copy.deepcopy(base), config=paged_config())[0] for base in bases]
        for step in range(4):
            losses = [token_loss(engine, step, rank) for engine in engines]
            for engine, loss in zip(reversed(engines), reversed(losses), strict=True):
                engine.backward(loss)
            for engine in engines:
                engine.step()
        return [flat_parameters(engine.module) for engine in engines]

    for ended in run_ranks(2, run):
        assert all(torch.equal(a, b) for a, b in zip(ended, alone, strict=True))
