"""Saves during training, full disks, removal of old checkpoints, damaged checkpoints that are skipped."""

import contextlib
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoint import assert_same_state, engine_of, train
from training import flat_parameters

from zeropage import _C
from zeropage.errors import CheckpointError, ConfigError, UsageError
from zeropage.testing import run_ranks
from zeropage.utils import zero_to_fp32

ASYNC = {"async_save": True}


@contextlib.contextmanager
def files_of_at_most(file_bytes: int):
    """A disk that takes no file larger than this; a shard of the small net is larger. (The system also sends a signal,
    which Python ignores.)"""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("stage", (0, 3))
def test_a_save_in_the_background_is_the_state_of_its_step(tmp_path, stage):
    """Catches a copy that later steps write into, saves that overtake each other, and one that is lost at the end."""

    def run(rank: int, communicator: Any) -> None:
        for name, own in (("straight", {}), ("behind", ASYNC)):
            engine = engine_of(0, stage=stage, precision="bf16", own=own)
            for step in range(3):
                train(engine, 2, rank, range(step, step + 1))
                engine.save_checkpoint(tmp_path / name)
            engine.destroy()

    run_ranks(2, run)
    for step in (1, 2, 3):
        assert_same_state(
            str(tmp_path / "straight" / f"global_step{step}"), str(tmp_path / "behind" / f"global_step{step}")
        )
    assert zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(tmp_path / "behind")


@pytest.mark.parametrize("own", ({}, ASYNC), ids=("at_once", "behind"))
def test_a_full_disk_fails_the_save_and_nothing_else(tmp_path, own):
    """Catches a failed save that is not seen, that not all ranks see, that stops the training or the saves after it."""

    def run(rank: int, communicator: Any) -> torch.Tensor:
        engine = engine_of(0, stage=2, own=own)
        train(engine, 2, rank, range(1))
        engine.save_checkpoint(tmp_path)
        engine.wait_for_checkpoint()
        communicator.barrier()
        if rank == 0:
            limits.enter_context(files_of_at_most(100_000))
        communicator.barrier()
        with pytest.raises(
            CheckpointError, match=r"'full' was not saved(.|\n)*shard-0000.*File too large; \d+ bytes are needed"
        ) as error:
            engine.save_checkpoint(tmp_path, tag="full")
            while own:  # in one of the next steps, on all ranks
                train(engine, 2, rank, range(1, 2))
        assert "rank 0, 1" in str(error.value) or ("rank 0:" in str(error.value) and "rank 1:" in str(error.value))
        communicator.barrier()
        if rank == 0:
            limits.close()
        communicator.barrier()
        train(engine, 2, rank, range(2, 3))
        engine.save_checkpoint(tmp_path, tag="after")
        engine.wait_for_checkpoint()
        return flat_parameters(engine.module)

    with contextlib.ExitStack() as limits:
        parameters = run_ranks(2, run)
    assert torch.equal(*parameters)
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {
        "after",
        "global_step1",
        "latest",
        "zero_to_fp32.py",
    }  # other engines may still exist
    loaded = engine_of(1, stage=0)
    loaded.load_checkpoint(tmp_path)
    assert torch.equal(flat_parameters(loaded.module), parameters[0])


def test_an_error_nobody_has_seen_is_raised_at_the_end(tmp_path):
    """Catches a run that ends without an error although its last checkpoint was not written."""
    engine = engine_of(0, stage=0, own=ASYNC)
    (tmp_path / "file").write_text("in the way")
    engine.save_checkpoint(tmp_path / "file")
    with pytest.raises(CheckpointError, match="'global_step0' was not saved"):
        engine.destroy()


def test_old_checkpoints_are_removed(tmp_path):
    """Catches a key that is read and has no effect."""
    engine = engine_of(0, stage=1, own={"keep_last": 2})
    for step in range(4):
        train(engine, 1, 0, range(step, step + 1))
        engine.save_checkpoint(tmp_path, save_latest=step != 0)
    assert (tmp_path / ".lock").exists()  # the folder is this process's until its engine ends
    engine.destroy()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "global_step1",
        "global_step3",
        "global_step4",
        "latest",
        "zero_to_fp32.py",
    ]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_skipped_only_on_request(tmp_path, capfd):
    """Catches a fallback that was not configured, that is not reported, or that trusts a manifest without verifying the
    shards."""

    def run(rank: int, communicator: Any, own: dict[str, Any]) -> tuple[str | None, dict | None]:
        return engine_of(1, stage=3, own=own).load_checkpoint(tmp_path)

    engine = engine_of(0, stage=2)
    for step in range(4):
        engine.save_checkpoint(tmp_path, tag=f"step{step}")
    flip_a_bit(tmp_path / "step3" / "manifest.json")
    flip_a_bit(tmp_path / "step2" / "shard-00000-of-00001.safetensors")
    with pytest.raises(CheckpointError, match="'step2': load it by its tag"):
        run_ranks(2, lambda rank, communicator: run(rank, communicator, {}))
    loaded = run_ranks(2, lambda rank, communicator: run(rank, communicator, {"allow_fallback": True}))
    assert [path for path, _ in loaded] == [str(tmp_path / "step1")] * 2
    warnings = capfd.readouterr().err
    assert warnings.count("skipped, as") == 2 and "step3/manifest.json" in warnings and "step2/shard-00000" in warnings
    for step in range(2):
        flip_a_bit(tmp_path / f"step{step}" / "manifest.json")
    with pytest.raises(CheckpointError, match="every checkpoint in .* is damaged"):
        run_ranks(2, lambda rank, communicator: run(rank, communicator, {"allow_fallback": True}))


def test_loading_by_a_function(tmp_path):
    """Catches values that do not reach the masters, and a counter or schedule that is not set."""

    def load(src: dict[str, torch.Tensor], dst: torch.nn.Module) -> None:
        src["tiny"] = src["tiny"] + 1
        dst.load_state_dict(src)

    def run(rank: int, communicator: Any) -> torch.Tensor:
        engine = engine_of(1, stage=3, precision="bf16")
        with pytest.raises(UsageError, match="load_optimizer_states=False"):
            engine.load_checkpoint(tmp_path, custom_load_fn=load)
        engine.load_checkpoint(tmp_path, custom_load_fn=load, load_optimizer_states=False)
        assert (engine.global_steps, engine.module.seen.tolist()) == (2, [0.0, 0.0])
        engine.save_checkpoint(tmp_path, tag="moved")
        return flat_parameters(engine.module)

    engine = engine_of(0, stage=1)
    train(engine, 1, 0, range(2))
    engine.save_checkpoint(tmp_path, tag="first")
    expected = {name: tensor.bfloat16().float() for name, tensor in engine.module_state_dict().items()}
    expected["tiny"] = (engine.module.tiny.detach() + 1).bfloat16().float()
    run_ranks(2, run)
    moved = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(tmp_path, tag="moved")
    for name, tensor in moved.items():
        # Masters of elements whose 16-bit value was the same already keep their low bits.
        assert torch.equal(tensor.bfloat16().float(), expected[name]), name


def test_requests_that_make_no_sense(tmp_path):
    """Catches errors of the wrong kind, and a pickle that is written because a name asks for one."""
    engine = engine_of(0, stage=0)
    with pytest.raises(UsageError, match="never as a pickle"):
        engine.save_16bit_model(tmp_path, "pytorch_model.bin")
    engine.save_checkpoint(tmp_path, tag="a")
    convert = zero_to_fp32.convert_zero_checkpoint_to_fp32_state_dict
    with pytest.raises(ConfigError, match="pickle"):
        convert(tmp_path, tmp_path / "out", safe_serialization=False)
    with pytest.raises(ConfigError, match='like "5GB"'):
        convert(tmp_path, tmp_path / "out", max_shard_size="five")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        convert(tmp_path / "none", tmp_path / "out")
    with pytest.raises(UsageError, match="a separate communicator"):
        options = _C.Config.from_json('{"train_batch_size": 1, "zeropage": {"async_save": true}}', 1, "dict")
        _C.Engine(
            [("w", torch.nn.Parameter(torch.zeros(2)), -1)],
            [],
            options,
            _C.make_thread_communicators(1, 1000)[0],
            torch.device("cpu"),
        )
