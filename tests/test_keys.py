"""Keys of the configuration that change a run: norms, accumulation that the program decides, sums over ranks,
Python's garbage collector, and what is printed."""

import copy
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training import (
    DAMPING_EPS,
    LEARNING_RATE,
    WEIGHT_DECAY,
    config_of,
    flat_parameters,
    part_of_batch,
    small_net,
    token_batch,
    train_ranks,
)

import zeropage
from zeropage.errors import ConfigError
from zeropage.testing import run_ranks

COMMAND = os.environ.get("ZEROPAGE_COMMAND", str(Path(__file__).parent.parent / "build" / "dev" / "zeropage"))
WORLD = 2
STAGES = pytest.mark.parametrize("stage", [0, 1, 2, 3])
NO_NORM = {"compute_grad_norm": False}


def on_ranks(config: dict[str, Any], loop: Callable[[Any, int], Any]) -> list[Any]:
    """`loop(engine, rank)` on every rank of an engine of the small net: (its result, parameters)."""
    model = small_net()

    def run(rank: int, communicator: Any) -> tuple[Any, torch.Tensor]:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config)
        return loop(engine, rank), flat_parameters(engine.module)

    return run_ranks(WORLD, run)


def one_rank(**sections: Any) -> Any:
    return zeropage.initialize(model=small_net(), config=config_of(0, **sections))[0]


# -- zero_optimization.compute_grad_norm


@STAGES
@pytest.mark.parametrize("sections", [{}, {"bf16": {"enabled": True}}], ids=["fp32", "bf16"])
def test_without_the_norm_the_same_parameters(stage: int, sections: dict[str, Any]):
    """Catches a norm that is reported although it was not computed, and an update that changes when it is not
    computed."""

    def config(**zero: Any) -> dict[str, Any]:
        return config_of(stage, clipping=0.0, zero_optimization=zero, zeropage={"page_numel": 5000}, **sections)

    def loop(engine: Any, rank: int) -> list[Any]:
        norms = []
        for step in range(3):
            engine.backward(engine(*part_of_batch(token_batch(step), WORLD, rank)))
            engine.step()
            norms.append(engine.get_global_grad_norm())
        return norms

    with_norm, without = on_ranks(config(), loop), on_ranks(config(**NO_NORM), loop)
    assert all(norm > 0 for norms, _ in with_norm for norm in norms)
    assert [norms for norms, _ in without] == [[None] * 3] * WORLD
    for (_, expected), (_, found) in zip(with_norm, without, strict=True):
        assert torch.equal(found, expected)


@STAGES
@pytest.mark.parametrize(
    ("sections", "skipped"),
    [
        ({"bf16": {"enabled": True}}, True),
        ({"bf16": {"enabled": True, "check_grad_overflow": False}}, False),
        ({"fp16": {"enabled": True, "loss_scale": 8.0}}, True),
    ],
    ids=["bf16", "bf16 unchecked", "fp16"],
)
def test_without_the_norm_overflow_is_found(stage: int, sections: dict[str, Any], skipped: bool):
    """Catches a step with an infinite gradient that is applied because its norm was not computed, and a check that runs
    where it is switched off."""

    def loop(engine: Any, rank: int) -> tuple[bool, int]:
        loss = engine(*part_of_batch(token_batch(0), WORLD, rank))
        engine.backward(loss * (float("inf") if rank == 1 else 1.0))
        engine.step()
        return engine.was_step_applied(), engine.skipped_steps

    outcomes = on_ranks(config_of(stage, clipping=0.0, zero_optimization=NO_NORM, **sections), loop)
    assert [counted for counted, _ in outcomes] == [(not skipped, int(skipped))] * WORLD
    assert all(parameters.isfinite().all().item() is skipped for _, parameters in outcomes)


# -- managed_gradient_accumulation


@STAGES
@pytest.mark.parametrize("own_backward", [False, True], ids=["engine.backward", "loss.backward"])
def test_the_program_decides_when_to_update(stage: int, own_backward: bool):
    """Catches a step() that waits for gradient_accumulation_steps, gradients of all backwards but the last that are
    lost, and micro batches that are not counted."""
    windows = [[0], [1, 2, 3], [4, 5]]
    config = config_of(stage, batch=4 * WORLD, eps=DAMPING_EPS, managed_gradient_accumulation=False)

    def loop(engine: Any, rank: int) -> Any:
        counted = []
        for micro_batches in windows:
            for micro in micro_batches:
                loss = engine(*part_of_batch(token_batch(micro), WORLD, rank)) / len(micro_batches)
                loss.backward() if own_backward else engine.backward(loss, scale_wrt_gas=False)
                assert engine.is_gradient_accumulation_boundary()
            engine.step()
            counted.append((engine.was_step_applied(), engine.micro_steps, engine.global_samples))
        return counted

    model = copy.deepcopy(small_net())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=DAMPING_EPS)
    for micro_batches in windows:
        optimizer.zero_grad()
        for micro in micro_batches:
            for rank in range(WORLD):
                loss = model(*part_of_batch(token_batch(micro), WORLD, rank))
                (loss / (WORLD * len(micro_batches))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    for counted, parameters in on_ranks(config, loop):
        assert counted == [(True, 1, 8), (True, 4, 32), (True, 6, 48)]
        assert (parameters - flat_parameters(model)).abs().max() < 1e-5


def test_losses_are_divided_by_the_configured_steps_unless_told():
    """Catches a loss that is divided by another count than the configured one."""
    engine = one_rank(batch=8, accumulation=2, managed_gradient_accumulation=False)
    norms = []
    for scale in (True, False):
        engine.backward(engine(*token_batch(0)), scale_wrt_gas=scale)
        norms.append(float(torch.cat([p.grad.flatten() for p in engine.module.parameters()]).norm()))
        engine.zero_grad()
    assert norms[0] * 2 == pytest.approx(norms[1], rel=1e-6)


# -- gradient_allreduce_op


@STAGES
@pytest.mark.parametrize("prescale", [False, True])
def test_gradients_of_ranks_are_summed(stage: int, prescale: bool):
    """Catches a sum that is divided by the ranks after all, at a stage or with prescale_gradients."""
    optimizer = {"type": "SGD", "params": {"lr": 0.05}}
    config = config_of(stage, clipping=0.0, gradient_allreduce_op="sum", prescale_gradients=prescale)
    config |= {"optimizer": optimizer, "gradient_predivide_factor": 4.0}
    found = train_ranks(small_net(), WORLD, config, 3)[0].parameters
    model = copy.deepcopy(small_net())
    plain = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(3):
        plain.zero_grad()
        for rank in range(WORLD):
            model(*part_of_batch(token_batch(step), WORLD, rank)).backward()
        plain.step()
    assert (found - flat_parameters(model)).abs().max() < 2e-6


# -- disable_python_gc


@pytest.fixture
def collector():
    assert gc.isenabled()
    yield
    gc.enable()


def test_the_collector_is_off_while_an_engine_lives(collector):
    """Catches a collector that is not switched off, that one of two engines switches on again, or that is still off
    after the last engine has ended."""
    first = one_rank(disable_python_gc=True)
    assert not gc.isenabled()
    second = one_rank(disable_python_gc=True)
    one_rank().destroy()
    first.destroy()
    first.destroy()
    assert not gc.isenabled()
    cycle: list[Any] = []
    cycle.append(cycle)
    del cycle
    assert second.collect_python_gc() > 0
    second.destroy()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off(collector):
    """Catches an engine that switches on what the program had switched off."""
    gc.disable()
    one_rank(disable_python_gc=True).destroy()
    assert not gc.isenabled()


def test_forked_workers_collect(collector):
    """Catches a worker of a data loader that inherits the setting and fills memory."""
    engine = one_rank(disable_python_gc=True)
    child = os.fork()
    if child == 0:
        os._exit(0 if gc.isenabled() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not gc.isenabled()
    engine.destroy()


# -- log_level, and messages at the start

PROGRAM = """
import json, sys
import torch, zeropage
from zeropage.utils import logger
engine, *_ = zeropage.initialize(model=torch.nn.Linear(2, 2), config=json.loads(sys.argv[1]))
engine.backward(engine(torch.ones(1, 2, dtype=torch.bfloat16)).float().sum() * float("inf"))
engine.step()
logger.warning("the program's line")
"""


def messages_of(**sections: Any) -> str:
    config = config_of(0, batch=1, **sections)
    command = [sys.executable, "-c", PROGRAM, json.dumps(config)]
    environment = {**os.environ, "ZEROPAGE_DEVICE": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_log_level_hides_less_severe_lines():
    """Catches a level that one of the two loggers does not take, or that hides what is as severe as it."""
    sections = {"bf16": {"enabled": True}, "zero_optimization": {"round_robin_gradients": True}}
    for level, shown in (("warning", True), ("error", False)):
        messages = messages_of(log_level=level, **sections)
        for part in ("round_robin_gradients: true has no effect", "step 1 was skipped", "the program's line"):
            assert (part in messages) is shown, (level, part, messages)


def test_what_differs_or_does_nothing_is_reported_once_by_rank_0(capfd):
    """Catches a key without effect, or missing clipping, that no rank reports, or that every rank reports."""
    config = config_of(2, zero_optimization={"sub_group_size": 1_000_000, "contiguous_gradients": True})
    del config["gradient_clipping"]
    on_ranks(config, lambda engine, rank: None)
    messages = capfd.readouterr().err
    for part in (
        "zero_optimization.sub_group_size: 1000000 has no effect: The update runs page by page",
        "as by default: zero_optimization.contiguous_gradients;",
        'gradient_clipping is absent, so gradients are not clipped, as in PyTorch; DeepSpeed clips at 1.0 since mid-2026: write "gradient_clipping": 1.0',
    ):
        assert messages.count(part) == 1, (part, messages)


def test_no_norm_and_clipping_exclude_each_other():
    """Catches clipping that is silently dropped."""
    with pytest.raises(ConfigError, match=r"compute_grad_norm: expected true together with gradient_clipping 0.5"):
        one_rank(zero_optimization=NO_NORM)


# -- zeropage config --from deepspeed


def compare(text: str, folder: Path, *options: str) -> subprocess.CompletedProcess:
    (folder / "ds_config.json").write_text(text)
    command = [str(Path(COMMAND).absolute()), "config", "--from", "deepspeed", "ds_config.json", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_a_file_is_compared_with_deepspeed(tmp_path):
    """Catches a comparison that stops at the first refused key, or that returns 0 for a file that would not train."""
    fine = compare('{"train_batch_size": 8, "gradient_clipping": 1.0}', tmp_path, "--world_size", "2")
    assert fine.returncode == 0 and fine.stdout.splitlines()[-1].startswith("2 supported with the same meaning, 0 ")
    text = '{"train_batch_size": 8, "amp": {"enabled": true}, "zero_optimization": {"stage": 4, "sub_group_size": 1}}'
    refused = compare(text, tmp_path, "--json")
    verdicts = {key["key"]: key["verdict"] for key in json.loads(refused.stdout)["keys"]}
    assert refused.returncode == 64
    assert verdicts == {
        "train_batch_size": "supported: same meaning",
        "amp": "refused",
        "zero_optimization.stage": "refused",
        "zero_optimization.sub_group_size": "without effect",
    }
