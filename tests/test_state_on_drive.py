"""The state of optimizers that PyTorch runs, on a drive: Muon's, one parameter at a time, and that of any other object.
The oracle is one process without an engine."""

from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
import test_muon
import test_whole_parameters
import torch
from training import config_of, small_net

from zeropage.utils.tensor_fragment import safe_get_full_optimizer_state, safe_set_full_optimizer_state

SMALL = 4096  # bytes; smaller tensors stay in memory


def on_drive(folder: Path, parameters: bool = False, **keys: Any) -> dict[str, Any]:
    target = {"device": "nvme", "nvme_path": str(folder)}
    return {"offload_optimizer": target, **({"offload_param": target} if parameters else {}), **keys}


def bytes_in_memory(engine: Any) -> int:
    return sum(engine.optimizer.shards.state.bytes_on(torch.device("cpu")))


def momentum_of(parameter: torch.Tensor) -> torch.Tensor:
    found = safe_get_full_optimizer_state(parameter, "momentum_buffer")
    assert found is not None
    return found.clone()


def test_only_small_momenta_are_in_memory(tmp_path):
    """Catches momenta that stay in memory, and the key that keeps them there without effect; and a memory table that
    counts what is on the drive."""

    def look(engine: Any) -> tuple[int, int, int]:
        memory = engine.memory_report()
        return bytes_in_memory(engine), memory.formula_host.optimizer, sum(each["optimizer"] for each in memory.host)

    # Moments and a count of steps, on as many as both ranks.
    small = sum(2 * 4 * p.numel() + 2 * 4 for p in small_net().parameters() if 4 * p.numel() < SMALL) + 2 * 4
    muon = sum(4 * p.numel() for name, p in small_net().named_parameters() if test_muon.is_matrix(name, p))
    for in_memory in (False, True):
        zero = on_drive(tmp_path, save_muon_momentum_buffer_in_memory=in_memory)
        found = test_muon.engine_run(test_muon.settings(3, zero_optimization=zero), after=look)
        held = sum(bytes_here for _, (bytes_here, _, _) in found)
        expected = muon if in_memory else 0
        assert expected <= held <= expected + small
        assert found[0][1][1] == -(-expected // 2)
        assert found[0][1][2] == held


@pytest.mark.parametrize("parameters", (False, True))
def test_muon_continues_from_a_checkpoint(parameters, tmp_path):
    """Catches momenta of an earlier step in a checkpoint, those of the program's start after a load, and other bits
    when a run with state on a drive continues in memory, or the other way round."""
    expected = test_muon.plain_run()
    drive = test_muon.settings(3, zero_optimization=on_drive(tmp_path, parameters))
    memory = test_muon.settings(2)
    for first, then in ((drive, memory), (memory, drive), (drive, drive)):
        folder = tmp_path / f"{first is drive}{then is drive}"
        save, load = methodcaller("save_checkpoint", folder), methodcaller("load_checkpoint", folder)
        test_muon.engine_run(first, steps=range(2), after=save)
        last = range(2, test_muon.STEPS)
        found = test_muon.engine_run(then, steps=last, before=load, after=bytes_in_memory)
        for flat, held in found:
            assert torch.equal(flat, expected)
            assert (held < 4 * 36_000 / 4) == (then is drive)


def test_values_of_programs(tmp_path):
    """Catches a read of state on a drive that fails or finds other bytes, and a write that is lost."""

    def change(engine: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        name, parameter = next(each for each in engine.module.named_parameters() if test_muon.is_matrix(*each))
        before = momentum_of(parameter)
        safe_set_full_optimizer_state(parameter, before * 2, "momentum_buffer")
        after = momentum_of(parameter)
        whole = engine.optimizer.state_dict()
        first = whole["param_groups"][0]["params"][0]
        return before, after, whole["state"][first]["momentum_buffer"]

    plain = test_muon.engine_run(test_muon.settings(2), after=change)
    found = test_muon.engine_run(test_muon.settings(2, zero_optimization=on_drive(tmp_path)), after=change)
    for (_, values), (_, expected) in zip(found, plain, strict=True):
        assert torch.equal(values[1], values[0] * 2)
        assert all(torch.equal(one, other) for one, other in zip(values, expected, strict=True))


@pytest.mark.parametrize("stage", (1, 2, 3))
def test_objects_that_see_whole_parameters(stage, tmp_path):
    """Catches state of any form that is lost on its way to the drive and back, and a state dict or a checkpoint without
    it."""
    expected, state = test_whole_parameters.plain_run(test_whole_parameters.Ratio)
    config = test_whole_parameters.settings(stage, zero_optimization=on_drive(tmp_path))

    def look(engine: Any) -> tuple[dict[str, Any], int]:
        engine.save_checkpoint(tmp_path / "saved")
        engine.load_checkpoint(tmp_path / "saved")
        return engine.optimizer.state_dict(), bytes_in_memory(engine)

    found = test_whole_parameters.engine_run(test_whole_parameters.Ratio, config, after=look)
    for parameters, (saved, held) in found:
        assert torch.equal(parameters, expected)
        test_whole_parameters.assert_same(saved["state"], state["state"])
        assert held < 4 * 40_000 / 4


def test_a_state_dict_is_loaded_by_ranks_that_have_none_of_a_parameter(tmp_path):
    """Catches a rank that looks on its drive for the state of a parameter that another rank owns."""

    def load(engine: Any) -> tuple[torch.Tensor, torch.Tensor]:
        parameter = next(each for name, each in engine.module.named_parameters() if test_muon.is_matrix(name, each))
        whole = engine.optimizer.state_dict()
        for state in whole["state"].values():
            if "momentum_buffer" in state:
                state["momentum_buffer"] = state["momentum_buffer"] * 2
        before = momentum_of(parameter)
        engine.optimizer.load_state_dict(whole)
        return before, momentum_of(parameter)

    found = test_muon.engine_run(test_muon.settings(2, zero_optimization=on_drive(tmp_path)), after=load)
    for _, (before, after) in found:
        assert torch.equal(after, before * 2)


@pytest.mark.parametrize("stage", (1, 2, 3))
def test_elementwise_objects(stage, tmp_path):
    """Catches an object of PyTorch whose parts of state are not there when it steps, or stay in memory."""

    def make(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(parameters, lr=1e-3)

    config = config_of(stage, clipping=0.0, zero_optimization=on_drive(tmp_path), zeropage={"page_numel": 5000})
    del config["optimizer"]
    expected, _ = test_whole_parameters.plain_run(make)
    for parameters, held in test_whole_parameters.engine_run(make, config, after=bytes_in_memory):
        assert torch.equal(parameters, expected)
        assert held < 4 * 40_000 / 4
