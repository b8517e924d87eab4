"""The lifetime of engines."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

import zeropage
from zeropage import errors

CONFIG = {"train_batch_size": 1, "optimizer": {"type": "AdamW"}}
WATCHED = {"wall_clock_breakdown": True, "flops_profiler": {"enabled": True}, "csv_monitor": {"enabled": True}}


@pytest.mark.parametrize(
    "more",
    (
        {},
        WATCHED,
        {"optimizer": {"type": "RMSprop"}, "scheduler": {"type": "WarmupLR"}},
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}},
        {"zeropage": {"async_save": True, "metrics_file": "metrics.jsonl", "preemption_folder": "preempted"}},
    ),
    ids=("plain", "watched", "torch_optimizer", "offload", "saves"),
)
def test_an_engine_ends_with_its_last_reference(more, tmp_path, monkeypatch):
    """Catches cycles: what an engine holds (memory, callbacks, files on a drive) would stay until garbage is
    collected."""
    monkeypatch.chdir(tmp_path)
    config = {**CONFIG, **more}
    zeropage.initialize(model=nn.Linear(2, 2), config=config)  # all late imports are done now
    gc.collect()
    gc.disable()
    try:
        engine, *_ = zeropage.initialize(model=nn.Linear(4, 4), config=config)
        engine.backward(engine(torch.ones(1, 4)).sum())
        engine.step()
        core = weakref.ref(engine._core)
        del engine, _
        assert core() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("copying", [copy.deepcopy, copy.copy, pickle.dumps])
def test_an_engine_is_not_copied(copying):
    """Catches an error that names an internal class of the engine, and two engines that share one memory."""
    engine, *_ = zeropage.initialize(model=nn.Linear(2, 2), config=CONFIG)
    with pytest.raises(errors.UsageError, match=r"copy\.deepcopy\(engine\.module\)"):
        copying(engine)
    assert isinstance(copy.deepcopy(engine.module), nn.Linear)
