"""What programs do with transformers besides training: loading, resizing, evaluating, training again, checkpoints,
generation."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from safetensors.torch import load_file
from tiny import PLAIN, assert_alike

from zeropage.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_alias")]


def on_two_ranks(function: str, folder: Path) -> list[Any]:
    return run_processes(2, "behaviour_runs", function, json.dumps({"folder": str(folder)}), folder, timeout_s=240)


def test_models_are_loaded_in_shards(tmp_path: Path):
    """Catches ranks that wait for each other while transformers fills in missing weights, values that differ from the
    file's or between ranks, and a model that is whole on every rank."""
    ranks = on_two_ranks("load_models", tmp_path)
    for rank in ranks:
        plain, sharded = rank[PLAIN], rank["3"]
        assert plain["absent"] == 0 and sharded["absent"] >= 8
        for key in ("whole", "headed"):
            for name, value in plain[key].items():
                assert torch.equal(sharded[key][name], value), f"{key}: {name}"
        for name, value in plain["whole"].items():
            assert torch.equal(sharded["resized"][name][: len(value)], value), f"resized: {name}"
        assert sharded["resized"]["model.embed_tokens.weight"].shape == (72, 32)
        for key in ("head", "resized", "fresh"):
            _assert_same(sharded[key], ranks[0]["3"][key], key)
        # They have new values, with the standard deviation that transformers gives them.
        for made in (sharded["head"], sharded["fresh"]["model.embed_tokens.weight"]):
            assert 0.01 < made.std() < 0.04


def test_a_large_model_is_never_whole_on_a_rank(tmp_path: Path):
    """Catches from_pretrained under zero.Init that takes more memory than a rank's shard and one layer: the model, made
    or read whole."""
    for rank in on_two_ranks("load_large", tmp_path):
        assert rank["model"] > 120 << 20
        assert rank["model"] // 4 < rank["peak"] < rank["model"] // 2 + rank["layer"] + (16 << 20), rank


def _assert_same(actual: Any, expected: Any, what: str) -> None:
    pairs = (
        [(actual, expected)]
        if isinstance(actual, torch.Tensor)
        else [(actual[name], expected[name]) for name in expected]
    )
    for one, other in pairs:
        assert torch.equal(one, other), f"{what} differs between ranks"


def test_a_trainer_is_used_again_and_again(tmp_path: Path):
    """Catches an engine that cannot be made after another one, and values, moments or learning rates of one training
    that the next one uses."""
    for rank in on_two_ranks("again_and_again", tmp_path):
        assert_alike(rank)


def test_checkpoints_of_the_trainer(tmp_path: Path):
    """Catches folders that transformers cannot resume from, a best model that is not the best, and exports that differ
    from the model."""
    for rank in on_two_ranks("checkpoints", tmp_path):
        assert_alike(rank)
    for stage in ("2", "3"):
        folder = tmp_path / stage / "checkpoint-4"
        assert (
            (folder / "global_step4").is_dir()
            and (folder / "latest").is_file()
            and (folder / "zero_to_fp32.py").is_file()
        )
        out = tmp_path / f"out{stage}"
        options = ["--safe_serialization", "--max_shard_size", "30KB", "-t", "global_step4"]
        subprocess.run(
            [sys.executable, str(folder / "zero_to_fp32.py"), str(folder), str(out), *options], check=True, timeout=60
        )
        state = get_fp32_state_dict_from_zero_checkpoint(folder)
        assert state["model.embed_tokens.weight"].shape == (64, 32)
        written = {
            name: value for file in out.glob("model-*-of-*.safetensors") for name, value in load_file(file).items()
        }
        assert (out / "model.safetensors.index.json").is_file() and len(list(out.glob("model-*"))) > 1
        assert written.keys() <= state.keys() and all(
            torch.equal(value, state[name]) for name, value in written.items()
        )


def test_ranks_generate_to_different_lengths(tmp_path: Path):
    """Catches a rank that waits for one which has stopped generating, and tokens that differ from the plain model's."""
    for rank in on_two_ranks("generate", tmp_path):
        assert rank["3"] == rank[PLAIN]


def test_a_schedule_is_filled_in(tmp_path: Path):
    """Catches "auto" in a schedule that the Trainer fills in and the engine reads in another way: two steps of warm-up,
    then down to 0."""
    for rates in on_two_ranks("configured_schedule", tmp_path):
        assert rates == pytest.approx([0.0, 0.005, 0.01, 0.005])
