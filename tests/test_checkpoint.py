"""Checkpoints: a resumed training has the same bits, any world size and stage loads any other, and a refused load
changes nothing."""

import copy
import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from training import config_of, flat_parameters, part_of_batch, small_net, token_batch

import zeropage
from zeropage import _C
from zeropage.errors import CheckpointError, UsageError
from zeropage.testing import run_ranks

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 2}},
}
SCHEDULE: dict[str, Any] = {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 5, "warmup_max_lr": 1e-2}}}
CLIENT = {"epoch": 3, "best": math.inf, "seen": (1, "two", None), "by_id": {7: [True]}, "mean": torch.arange(3.0)}


def config(
    stage: int, precision: str = "fp32", page_numel: int = 10_000, own: Any = None, **sections: Any
) -> dict[str, Any]:
    own = {"page_numel": page_numel, **(own or {})}
    return config_of(stage, batch=12, zeropage=own, **PRECISIONS[precision], **SCHEDULE, **sections)


def engine_of(seed: int, **options: Any) -> Any:
    return zeropage.initialize(model=model_of(seed), config=config(**options))[0]


def model_of(seed: int) -> torch.nn.Module:
    """A copy of what is built once per seed: torch's random generator is shared by threads."""
    model = copy.deepcopy(_built(seed))
    model.register_buffer("seen", torch.full((2,), float(seed)))
    return model


@functools.cache
def _built(seed: int) -> torch.nn.Module:
    return small_net(seed)


def train(engine: Any, world: int, rank: int, steps: range) -> list[float]:
    losses = []
    for step in steps:
        loss = engine(*part_of_batch(token_batch(step, size=12), world, rank))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def state_of(path: str) -> dict[str, torch.Tensor]:
    """Every tensor of a step that belongs to parameters, whole."""
    step = _C.Checkpoint(path)
    manifest = json.loads(Path(path, "manifest.json").read_text())["manifest"]
    names = [tensor["name"] for tensor in manifest["tensors"]]
    return {name: step.read_tensor(name) for name in names if not name.startswith("host/")}


def assert_same_state(a: str, b: str) -> None:
    first, second = state_of(a), state_of(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_resume_continues_with_the_same_bits(tmp_path, precision, stage):
    """Catches state that is not saved, not restored, or restored to another place: losses and the full state after
    it."""

    def run(rank: int, communicator: Any) -> None:
        engine = engine_of(0, stage=stage, precision=precision)
        train(engine, 2, rank, range(3))
        assert engine.save_checkpoint(tmp_path, client_state=CLIENT)
        expected = train(engine, 2, rank, range(3, 6))
        engine.save_checkpoint(tmp_path, tag="straight", save_latest=False)
        other = engine_of(1, stage=stage, precision=precision)
        train(other, 2, rank, range(1))
        path, client = other.load_checkpoint(tmp_path)
        assert path == str(tmp_path / "global_step3")
        assert torch.equal(client.pop("mean"), CLIENT["mean"])
        assert client == {name: value for name, value in CLIENT.items() if name != "mean"}
        assert (other.global_steps, other.module.seen.tolist()) == (3, [0.0, 0.0])
        assert train(other, 2, rank, range(3, 6)) == expected
        assert (other.loss_scale(), other.get_lr()) == (engine.loss_scale(), engine.get_lr())
        other.save_checkpoint(tmp_path, tag="resumed")

    run_ranks(2, run)
    assert_same_state(str(tmp_path / "straight"), str(tmp_path / "resumed"))


@pytest.mark.parametrize("precision", ("fp32", "bf16"))
def test_any_world_and_stage_load_any_other(tmp_path, precision):
    """Catches segments that are cut or placed wrongly: the full state is loaded and saved at other world sizes, stages
    and page sizes."""

    def make(rank: int, communicator: Any) -> None:
        engine = engine_of(0, stage=2, precision=precision)
        train(engine, 4, rank, range(2))
        engine.save_checkpoint(tmp_path, tag="first")

    run_ranks(4, make)
    before = "first"
    for world, stage, page_numel in (
        (3, 3, 7_000),
        (1, 1, 100_000),
        (6, 3, 3_000),
        (2, 0, 10_000),
        (5, 1, 20_000),
        (8, 2, 9_000),
    ):
        after = f"world{world}_stage{stage}"

        def move(
            rank: int, communicator: Any, before=before, after=after, stage=stage, page_numel=page_numel
        ) -> torch.Tensor:
            options = config(stage, precision, page_numel)
            options["train_batch_size"] = 120
            engine, *_ = zeropage.initialize(model=model_of(1), config=options)
            engine.load_checkpoint(tmp_path, tag=before)
            engine.save_checkpoint(tmp_path, tag=after)
            return flat_parameters(engine.module)

        parameters = run_ranks(world, move)
        assert all(torch.equal(parameters[0], other) for other in parameters)
        assert_same_state(str(tmp_path / "first"), str(tmp_path / after))
        before = after


@pytest.mark.parametrize("stage", (1, 3))
def test_resume_over_a_network(tmp_path, stage):
    """Catches gathers in flight while shards are replaced: gathers are collectives that are delayed at random."""

    def run(rank: int, communicator: Any) -> None:
        engine = engine_of(0, stage=stage)
        train(engine, 2, rank, range(2))
        engine.save_checkpoint(tmp_path)
        expected = train(engine, 2, rank, range(2, 4))
        engine.load_checkpoint(tmp_path)
        assert train(engine, 2, rank, range(2, 4)) == expected

    run_ranks(2, run, two_sided=True, max_delay_us=300)


def resume_in_process(folder: str) -> list[float]:
    """The program of one rank as a process: resumes from the folder's newest step, and saves."""
    engine = engine_of(1, stage=3, precision="bf16")
    engine.load_checkpoint(folder)
    losses = train(engine, 2, engine.global_rank, range(2, 4))
    engine.save_checkpoint(folder, tag="resumed")
    return losses


def test_resume_in_new_processes(tmp_path):
    """Catches state that stays in the process and is missing on disk."""

    def run(rank: int, communicator: Any) -> list[float]:
        engine = engine_of(0, stage=3, precision="bf16")
        train(engine, 2, rank, range(2))
        engine.save_checkpoint(tmp_path)
        losses = train(engine, 2, rank, range(2, 4))
        engine.save_checkpoint(tmp_path, tag="straight", save_latest=False)
        return losses

    expected = run_ranks(2, run)
    assert (
        run_processes(2, "test_checkpoint", "resume_in_process", json.dumps({"folder": str(tmp_path)}), tmp_path)
        == expected
    )
    assert_same_state(str(tmp_path / "straight"), str(tmp_path / "resumed"))


def test_what_was_written_between_steps_is_saved(tmp_path):
    """Catches edits in frames that the saved shards do not have."""

    def run(rank: int, communicator: Any) -> None:
        engine = engine_of(0, stage=3, precision="bf16")
        train(engine, 2, rank, range(1))
        with torch.no_grad():
            engine.module.expand[0].weight.fill_(0.5)
        engine.save_checkpoint(tmp_path, tag="edited")

    run_ranks(2, run)
    state = state_of(str(tmp_path / "edited"))
    assert state["value/expand.0.weight"].eq(0.5).all() and state["master/expand.0.weight"].eq(0.5).all()


@pytest.mark.parametrize("stage", (0, 3))
def test_a_refused_checkpoint_changes_nothing(tmp_path, stage):
    """Catches bytes that reach the model before all ranks have verified theirs, and messages that do not say where the
    damage is."""

    def run(rank: int, communicator: Any) -> None:
        engine = engine_of(0, stage=stage)
        train(engine, 2, rank, range(1))
        engine.save_checkpoint(tmp_path)
        train(engine, 2, rank, range(1, 2))
        before = flat_parameters(engine.module)
        shard = tmp_path / "global_step1" / "shard-00001-of-00002.safetensors"
        communicator.barrier()
        if rank == 0:
            content = bytearray(shard.read_bytes())
            content[-100] ^= 1
            shard.write_bytes(content)
        communicator.barrier()
        with pytest.raises(
            CheckpointError,
            match=r"the model is unchanged(.|\n)*shard-00001-of-00002.safetensors is damaged between offset 0",
        ):
            engine.load_checkpoint(tmp_path)
        assert torch.equal(flat_parameters(engine.module), before)
        assert engine.global_steps == 2
        with pytest.raises(CheckpointError, match="there is no checkpoint 'none'.*global_step1"):
            engine.load_checkpoint(tmp_path, tag="none")

    run_ranks(2, run)


@pytest.mark.parametrize("log_bytes", [0, 1 << 20])
def test_a_refused_checkpoint_keeps_gradients(tmp_path, log_bytes):
    """Catches a refused load that has dropped gradients, or undone updates that overlapped with the backward."""
    zero = {"offload_optimizer": {"device": "cpu"}}
    settings = config_of(2, zero_optimization=zero, zeropage={"speculation_bytes": log_bytes})

    def parameters_after_a_step(refused: bool) -> torch.Tensor:
        engine, *_ = zeropage.initialize(model=small_net(), config=settings)
        engine.backward(engine(*token_batch(0)))
        if refused:
            with pytest.raises(CheckpointError, match="is damaged"):
                engine.load_checkpoint(tmp_path)
        engine.step()
        return flat_parameters(engine.module)

    saved, *_ = zeropage.initialize(model=small_net(seed=1), config=settings)
    saved.save_checkpoint(tmp_path)
    for shard in tmp_path.glob("*/shard-*.safetensors"):
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    assert torch.equal(parameters_after_a_step(refused=True), parameters_after_a_step(refused=False))


def test_differences_are_listed_and_may_be_tolerated(tmp_path):
    """Catches a load that stops at the first difference, and one that is not strict and loads nothing."""

    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tiny = torch.nn.Parameter(torch.zeros(3))
            self.new = torch.nn.Parameter(torch.zeros(4))

    engine = engine_of(0, stage=1)
    engine.save_checkpoint(tmp_path)
    other, *_ = zeropage.initialize(model=Other(), config=config_of(2, batch=12))
    with pytest.raises(CheckpointError) as error:
        other.load_checkpoint(tmp_path)
    for piece in (
        "'new' is in the model",
        "'embedding.weight' is in the checkpoint",
        "buffer 'seen' is in the checkpoint",
    ):
        assert piece in str(error.value)
    assert other.module.tiny.eq(0).all()
    other.load_checkpoint(tmp_path, load_module_strict=False, load_module_only=True)
    assert other.module.tiny.eq(1).all() and other.module.new.eq(0).all()


def test_the_rest_of_the_interface(tmp_path):
    """Catches results that differ from DeepSpeed's, and requests that are silently ignored."""
    engine = engine_of(0, stage=0)
    assert engine.load_checkpoint(tmp_path) == (None, None)
    with pytest.raises(CheckpointError, match=r"client_state\['x'\]\[1\] is a builtins.object"):
        engine.save_checkpoint(tmp_path, client_state={"x": [1, object()]})
    with pytest.raises(UsageError, match="cannot name a checkpoint"):
        engine.save_checkpoint(tmp_path, tag="../outside")
    engine.backward(engine(*token_batch(0, size=12)))
    with pytest.raises(UsageError, match="gradients that no step has used"):
        engine.save_checkpoint(tmp_path)
    engine.step()
    engine.save_checkpoint(tmp_path, tag="kept")
    expected = torch.rand(3)
    engine.load_checkpoint(tmp_path, tag="kept")
    assert torch.equal(torch.rand(3), expected), "torch's generator continues from the checkpoint"
    assert (tmp_path / "latest").read_text() == "kept\n"


class TiedAndFrozen(torch.nn.Module):
    """One weight under two names, one that is not trained, one of integers, one without elements, one transposed."""

    def __init__(self, value: float):
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.second = torch.nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.frozen = torch.nn.Parameter(torch.full((5,), value), requires_grad=False)
        self.table = torch.nn.Parameter(torch.full((3,), int(value), dtype=torch.int64), requires_grad=False)
        self.empty = torch.nn.Parameter(torch.zeros(0, 2))
        self.turned = torch.nn.Parameter(torch.arange(6.0).view(2, 3).t() * value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.second(self.first(x)) + self.frozen[:4]).square().mean() + self.turned.square().sum()


@pytest.mark.parametrize("stage", (0, 3))
def test_odd_parameters(tmp_path, stage):
    """Catches kinds of parameters that are lost, saved twice or transposed, and frozen ones that are changed when
    excluded."""

    models = [TiedAndFrozen(value) for value in (1.0, 2.0, 2.0)]

    def run(rank: int, communicator: Any) -> None:
        first, second, third = (
            zeropage.initialize(model=copy.deepcopy(m), config=config_of(stage, batch=2))[0] for m in models
        )
        first.backward(first(torch.ones(1, 4)))
        first.step()
        expected = flat_parameters(first.module)
        first.save_checkpoint(tmp_path, tag="all")
        first.save_checkpoint(tmp_path, tag="trained", exclude_frozen_parameters=True)
        second.load_checkpoint(tmp_path, tag="all")
        assert torch.equal(flat_parameters(second.module), expected)
        third.load_checkpoint(tmp_path, tag="trained")
        with zeropage.zero.GatheredParameters(list(third.module.parameters())):
            assert third.module.frozen.eq(2).all() and third.module.table.eq(2).all()

    run_ranks(2, run)
    parameters = json.loads((tmp_path / "all" / "manifest.json").read_text())["manifest"]["parameters"]
    assert [p["aliases"] for p in parameters if p["name"] == "first.weight"] == [["second.weight"]]


class Base(torch.nn.Module):
    """A base that is frozen, and an adapter."""

    def __init__(self, base_trains: bool = False):
        super().__init__()
        self.base = torch.nn.Linear(4, 4).requires_grad_(base_trains)
        self.adapter = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.base(x) + self.adapter(x)).square().mean()


def stepped(model: torch.nn.Module) -> Any:
    engine = zeropage.initialize(model=model, config=config_of(0, batch=1))[0]
    engine.backward(engine(torch.ones(1, 4)))
    engine.step()
    return engine


def test_frozen_parameters_that_were_left_out_are_listed(tmp_path, capfd):
    """Catches a strict load without a message about a base which the checkpoint does not have."""
    stepped(Base()).save_checkpoint(tmp_path, exclude_frozen_parameters=True)
    other = stepped(Base())
    base = other.module.base.weight.detach().clone()
    other.load_checkpoint(tmp_path)
    messages = capfd.readouterr().err
    assert "not in the checkpoint" in messages and "base.weight" in messages and "adapter" not in messages
    assert torch.equal(other.module.base.weight, base)


@pytest.mark.parametrize("exclude", (False, True))
def test_more_is_trained_than_was_saved(tmp_path, exclude):
    """Catches advice that would lose the moments of all parameters, where one option keeps those that are there."""
    saved = stepped(Base())
    saved.save_checkpoint(tmp_path, exclude_frozen_parameters=exclude)
    engine = stepped(Base(base_trains=True))
    with pytest.raises(CheckpointError, match=r"base\.weight.*load_module_strict=False") as caught:
        engine.load_checkpoint(tmp_path)
    assert "load_optimizer_states" not in str(caught.value)
    engine.load_checkpoint(tmp_path, load_module_strict=False)
    assert torch.equal(engine.module.adapter.weight, saved.module.adapter.weight)
