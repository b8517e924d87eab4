"""How much memory a rank holds: counted by the engine, measured from outside, and by the formula."""

import copy
import ctypes
import gc
import json
from pathlib import Path

import pytest
import torch
from processes import run_processes
from torch import nn
from training import config_of, small_net, token_batch

import zeropage
from zeropage.testing import run_ranks

STAGES = (0, 1, 2, 3)
STATE_KINDS = ("parameters", "gradients", "optimizer")
TOLERANCE = 0.02


class Layers(nn.Module):
    """Matrices and biases without any data: the loss reads every parameter, so that all of them get gradients."""

    def __init__(self, layers: int, width: int):
        super().__init__()
        self.weights = nn.ParameterList(torch.full((width, width), 0.01, dtype=torch.bfloat16) for _ in range(layers))
        self.biases = nn.ParameterList(torch.full((width,), 0.01, dtype=torch.bfloat16) for _ in range(layers))

    def forward(self) -> torch.Tensor:
        return torch.stack([(p * p).sum() for p in self.parameters()]).sum()


def own_memory_bytes() -> int:
    """PSS of this process without mapped files, whose part changes with what other processes do."""
    ctypes.CDLL(None).malloc_trim(0)  # what torch's operators have freed
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def bytes_of_training(model: nn.Module, stage: int) -> dict[str, dict[str, int]]:
    """Trains `model` for two steps and frees cached memory. Returns the bytes in use, by kind and by the formula."""
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    }
    engine, *_ = zeropage.initialize(model=model, config=config)
    for _ in range(2):
        engine.backward(engine())
        engine.step()
    engine.empty_partition_cache()
    counted = {kind: now for kind, (now, _peak) in engine._core.measured_bytes().items()}
    formula = engine._core.formula_bytes()
    by_formula = {kind: getattr(formula, kind) for kind in STATE_KINDS}
    engine._communicator.barrier()  # memory that ranks share counts in full for the last one that holds it
    held = own_memory_bytes()
    engine._communicator.barrier()
    engine.destroy()
    return {"counted": counted, "formula": by_formula, "held": {"all": held}}


def train_at_all_stages(layers: int, width: int) -> dict[int, dict[str, dict[str, int]]]:
    """One rank, one engine after the other. `held` is less what the process holds between two engines."""
    bytes_of_training(Layers(1, 64), stage=3)  # what the first engine of a process loads and keeps
    results = {}
    for stage in STAGES:
        gc.collect()
        before = own_memory_bytes()
        results[stage] = bytes_of_training(Layers(layers, width), stage)
        results[stage]["held"]["all"] -= before
    return results


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_100m_parameters_take_what_the_formula_says(world, tmp_path):
    """Catches state that is kept twice, buffers that are not freed, padding that grows, a formula whose bytes are too
    few, and a wrong ledger."""
    model = json.dumps({"layers": 24, "width": 2048})
    ranks = run_processes(world, "test_memory", "train_at_all_stages", model, tmp_path, timeout_s=500)
    for rank, results in enumerate(ranks):
        for stage, result in results.items():
            where = f"rank {rank} of {world}, stage {stage}"
            for kind in STATE_KINDS:
                assert result["counted"][kind] == pytest.approx(result["formula"][kind], rel=TOLERANCE), (
                    f"{where}: {kind}"
                )
            total = sum(result["formula"].values())
            assert result["held"]["all"] == pytest.approx(total, rel=TOLERANCE), (
                f"{where}: PSS over a run without a model"
            )


@pytest.mark.parametrize("stage", STAGES)
def test_buffers_are_not_larger_than_the_model_needs(stage):
    """Catches buckets allocated by their configured size: 5e8 elements by default, for a model of 37,000."""
    model = small_net()
    model_bytes = 4 * sum(p.numel() for p in model.parameters())

    def peaks(rank, communicator):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config_of(stage))
        for step in range(3):
            engine.backward(engine(*token_batch(step)))
            engine.step()
        return {kind: peak for kind, (_now, peak) in engine._core.measured_bytes().items()}

    for measured in run_ranks(2, peaks):
        # At most all parameters gathered, and all gradients waiting for the other rank; a page's end is padded.
        assert measured["frames"] <= 2.5 * model_bytes
        assert measured["buffers"] <= model_bytes
