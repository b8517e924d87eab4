"""torch_autocast, and parameters that are their own 16-bit masters."""

import contextlib
import copy
from typing import Any

import pytest
import torch
from training import WEIGHT_DECAY, config_of, flat_parameters, part_of_batch, small_net, token_batch, train_ranks

import zeropage
from zeropage import errors
from zeropage.testing import run_ranks

BF16_MASTERS: dict[str, Any] = {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}
FP16_MASTERS = {"fp16": {"enabled": True, "loss_scale": 128, "fp16_master_weights_and_grads": True}}


@pytest.mark.parametrize("stage", (0, 3))
def test_autocast_is_torchs(stage):
    """Catches a forward that does not run under autocast: the bits of a program that switches it on itself."""
    config = config_of(stage, zeropage={"page_numel": 5000})
    configured = {**config, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}}

    def trained(config: dict[str, Any], around: Any) -> torch.Tensor:
        model = small_net()

        def run(rank: int, communicator: Any) -> torch.Tensor:
            engine = zeropage.initialize(model=copy.deepcopy(model), config=config)[0]
            for step in range(4):
                with around():
                    loss = engine(*part_of_batch(token_batch(step), 2, rank))
                engine.backward(loss)
                engine.step()
            return flat_parameters(engine.module)

        return run_ranks(2, run)[0]

    found = trained(configured, contextlib.nullcontext)
    assert torch.equal(found, trained(config, lambda: torch.autocast("cpu", dtype=torch.bfloat16)))
    assert not torch.equal(found, trained(config, contextlib.nullcontext))


def test_autocast_leaves_fp32():
    """Catches parameters that are cast, and an autocast that is still on after the forward."""
    engine = zeropage.initialize(
        model=torch.nn.Linear(4, 4), config={**config_of(0), "torch_autocast": {"enabled": True}}
    )[0]
    out = engine(torch.ones(2, 4))
    assert out.dtype == torch.bfloat16 and engine.module.weight.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("stage", (0, 3))
def test_autocast_to_fp16_scales_losses(stage):
    """Catches an autocast to fp16 whose small gradients vanish, and one whose overflows are not skipped on all
    ranks."""
    scaled: dict[str, Any] = {
        "torch_autocast": {"enabled": True, "dtype": "fp16"},
        "fp16": {"enabled": False, "initial_scale_power": 10, "hysteresis": 1},
    }
    model = small_net()

    def run(rank: int, communicator: Any) -> list[float]:
        engine = zeropage.initialize(
            model=copy.deepcopy(model), config=config_of(stage, zeropage={"page_numel": 5000}, **scaled)
        )[0]
        scales = []
        for step in range(4):
            loss = engine(*part_of_batch(token_batch(step), 2, rank))
            engine.backward(loss * (float("inf") if step == 1 and rank == 1 else 1.0))
            engine.step()
            assert engine.was_step_applied() == (step != 1)
            scales.append(engine.loss_scale())
        assert engine.module.embedding.weight.dtype == torch.float32 and flat_parameters(engine.module).isfinite().all()
        return scales

    assert run_ranks(2, run) == [[1024, 512, 512, 512]] * 2


@pytest.mark.parametrize("sections", (BF16_MASTERS, FP16_MASTERS), ids=("bf16", "fp16"))
def test_own_masters_have_the_same_bits_whoever_updates(sections):
    """Catches rounding that depends on who updates an element, and on which rank."""

    def parameters(stage: int) -> torch.Tensor:
        config = config_of(stage, zeropage={"page_numel": 5000}, **sections)
        return train_ranks(small_net(), 2, config, 4)[0].parameters

    expected = parameters(2)
    assert torch.equal(parameters(3), expected)
    # Stages 0 and 1 round sums of gradients at other places: a parameter may be rounded to the next value of 16 bits at
    # each step.
    assert (parameters(1) - expected).abs().mean().item() < 2e-3
    assert not torch.equal(expected, flat_parameters(small_net()))


def test_own_masters_train_where_rounding_to_nearest_changes_nothing():
    """Catches rounding that is not right on average: steps of a 16th of what bf16 can represent must add up."""
    model = torch.nn.Linear(256, 256, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = {"type": "SGD", "params": {"lr": 1.0}}
    config = {**config_of(0, batch=1, clipping=0.0, **BF16_MASTERS), "optimizer": optimizer}
    engine = zeropage.initialize(model=model, config=config)[0]
    step = 2.0**-12  # values of bf16 below 1 are 2^-8 apart
    for _ in range(64):
        engine.backward(engine.module.weight.float().sum() * step)
        engine.step()
    mean = engine.module.weight.detach().float().mean().item()
    # 64 steps of 2^-12 are 2^-6; 65536 elements whose deviation is at most sqrt(64) * 2^-9 leave 6e-5 in the mean.
    assert mean == pytest.approx(1 - 64 * step, abs=3e-4)


@pytest.mark.parametrize("stage", (0, 2))
def test_own_masters_take_their_bytes(stage):
    """Catches masters that are kept nevertheless, and a formula that counts them: 2 B parameter, 2 B gradient, 8 B of
    Adam."""
    model = torch.nn.Linear(256, 256, bias=False)
    engine = zeropage.initialize(model=model, config=config_of(stage, batch=1, **BF16_MASTERS))[0]
    engine.backward(engine.module.weight.float().sum())  # one rank has gradients between backward and step only
    memory = engine.memory_report()
    measured = memory.ranks[0]
    numel = 1 << 16
    assert (measured["parameters"], measured["gradients"], measured["optimizer"]) == (2 * numel, 2 * numel, 8 * numel)
    assert (memory.formula.parameters, memory.formula.gradients, memory.formula.optimizer) == (
        2 * numel,
        2 * numel,
        8 * numel,
    )


def test_own_masters_resume(tmp_path):
    """Catches a checkpoint that has no precise values where there are no masters."""
    config = {**config_of(2, batch=8, **BF16_MASTERS), "zero_optimization": {"stage": 2}}
    engine = zeropage.initialize(model=small_net(), config=config)[0]

    def train(engine: Any, steps: range) -> torch.Tensor:
        for step in steps:
            engine.backward(engine(*token_batch(step)))
            engine.step()
        return flat_parameters(engine.module)

    train(engine, range(2))
    engine.save_checkpoint(tmp_path)
    other = zeropage.initialize(model=small_net(1), config=config)[0]
    other.load_checkpoint(tmp_path)
    assert torch.equal(train(other, range(2, 4)), train(engine, range(2, 4)))


def test_own_masters_and_updates_that_need_masters():
    """Catches Lamb or an optimizer of torch that would work on rounded values."""
    for optimizer in ("Lamb", "RMSprop"):
        config = {
            **config_of(0, **BF16_MASTERS),
            "optimizer": {"type": optimizer, "params": {"weight_decay": WEIGHT_DECAY}},
        }
        with pytest.raises(errors.ConfigError, match="master_weights_and_grads"):
            zeropage.initialize(model=small_net(), config=config)
