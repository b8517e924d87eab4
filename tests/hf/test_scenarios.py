"""More of what programs do with the Trainer, against the same script under plain DDP. All scenarios share two
processes."""

import json
from pathlib import Path
from typing import Any

import pytest
from processes import run_processes
from scenario_runs import ELEMENTWISE
from tiny import PLAIN, assert_alike, llama

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_alias")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenarios")
    llama().save_pretrained(folder / "resized" / "model")
    return folder


@pytest.fixture(scope="module")
def ranks(with_alias: None, folder: Path) -> list[dict[str, Any]]:
    return run_processes(2, "scenario_runs", "everything", json.dumps({"folder": str(folder)}), folder, timeout_s=400)


@pytest.mark.parametrize("scenario", ("on_a_drive", "resized", "on_a_quantized_base", "saved_half_way"))
def test_as_under_plain_ddp(ranks: list[dict[str, Any]], scenario: str):
    """Catches losses or weights that differ: with state on a drive, after resize_token_embeddings of a model made under
    zero.Init, and with adapters on a frozen base of uint8."""
    for rank in ranks:
        assert_alike(rank[scenario])


def test_bf16(ranks: list[dict[str, Any]]):
    """Catches 16-bit training that drifts from autocast over fp32 weights, which is what plain DDP does: losses within
    1e-3 over six steps."""
    for rank in ranks:
        runs = rank["in_bf16"]
        assert_alike({name: run["loss"] for name, run in runs.items()}, within=1e-3)
        assert_alike({name: run["grad_norm"] for name, run in runs.items()}, within=1e-2)


def test_optimizers_of_the_trainer(ranks: list[dict[str, Any]]):
    """Catches a name of transformers' Trainer whose optimizer is elementwise and is refused, or trains differently."""
    for rank in ranks:
        runs = rank["optimizers"]["elementwise"]
        assert set(runs["3"]) == set(ELEMENTWISE)
        assert_alike(runs)


def test_an_optimizer_of_whole_parameters(ranks: list[dict[str, Any]]):
    """Catches Adafactor on shards, where it would silently train another model: Accelerate accepts every optimizer."""
    for rank in ranks:
        assert_alike(rank["optimizers"]["adafactor"])


def test_another_number_of_ranks_continues(ranks: list[dict[str, Any]], folder: Path):
    """Catches checkpoints of the Trainer that only as many ranks as wrote them can read."""
    alone = run_processes(
        1, "scenario_runs", "continue_alone", json.dumps({"folder": str(folder)}), folder, timeout_s=200
    )[0]
    assert_alike({PLAIN: ranks[0]["saved_half_way"][PLAIN]["weights"], "alone": alone["weights"]})
