"""`zero.Init`: models that are built in shards, with rank 0's values, and train as if they had been built whole."""

import json
import os
import re
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes, start_ranks
from torch import nn
from training import SmallNet, config_of, flat_parameters, small_net, train_engine, train_ranks

import zeropage
from zeropage.errors import ConfigError
from zeropage.testing import run_ranks

STEPS = 3


def config_in_shards(communicator: str = "auto", precision: str = "fp32"):
    """Pages of one parameter; less than a fifth of the small net may be resident."""
    sections: dict[str, Any] = {} if precision == "fp32" else {precision: {"enabled": True}}
    own = {"page_numel": 1, "communicator": communicator}
    return config_of(3, zero_optimization={"stage3_max_live_parameters": 8000}, zeropage=own, **sections)


def is_absent(tensor: torch.Tensor) -> bool:
    try:
        tensor.data_ptr()
    except RuntimeError as error:
        return "not resident" in str(error)
    return False


def build_and_train(communicator: str, precision: str):
    """One rank, a process with its own random numbers; returns its observations."""
    rank = int(os.environ["RANK"])
    torch.manual_seed(rank)
    config = config_in_shards(communicator, precision)
    with zeropage.zero.Init(config_dict_or_path=config):
        model = SmallNet()
    absent = sum(is_absent(p) for p in model.parameters())
    dtypes = {p.dtype for p in model.parameters()}
    engine, *_ = zeropage.initialize(model=model, config=config)
    initial = flat_parameters(model)
    return {
        "absent": absent,
        "dtypes": dtypes,
        "initial": initial,
        "trained": train_engine(engine, 2, rank, STEPS).parameters,
    }


@pytest.mark.parametrize(("communicator", "precision"), [("shared_memory", "fp32"), ("c10d", "bf16")])
def test_trains_as_if_built_whole_on_rank_0(communicator, precision, tmp_path):
    """Catches other random numbers than plain construction draws, values of other ranks, masters made from rounded
    values."""
    arguments = json.dumps({"communicator": communicator, "precision": precision})
    ranks = run_processes(2, "test_init", "build_and_train", arguments, tmp_path)
    plain = small_net(seed=0)
    expected = flat_parameters(plain if precision == "fp32" else small_net(seed=0).bfloat16())
    trained = train_ranks(plain, 2, config_in_shards(precision=precision), STEPS)[0].parameters
    for found in ranks:
        assert found["absent"] >= 3, "nothing was sharded, so this shows nothing"
        assert found["dtypes"] == {torch.float32}
        assert torch.equal(found["initial"], expected)
        assert torch.equal(found["trained"], trained)


class MostlyFrozen(nn.Module):
    """112 frozen layers of 4 MiB between a trained input and a trained output. 448 MiB in fp32."""

    def __init__(self, width: int = 1024, layers: int = 112):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers)).requires_grad_(False)
        self.shift = nn.Parameter(torch.zeros(width))
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x + self.shift)
        return self.head(x).float().square().mean()


MEMORY_LIMIT_BYTES = 432 << 20


@pytest.fixture
def little_address_space_per_thread(monkeypatch):
    """A thread started later would take 8 MiB for its stack and 64 MiB for its own malloc arena, almost unused."""
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


def train_under_limit(init: bool):
    """Builds `MostlyFrozen` and trains a step with 432 MiB more address space than torch and a first engine take."""
    torch.set_num_threads(1)
    zero = {"stage3_max_live_parameters": 1 << 22}
    config = {
        **config_of(3, batch=2, zero_optimization=zero, zeropage={"page_numel": 1 << 20, "communicator": "c10d"}),
        "bf16": {"enabled": True},
    }
    x = torch.ones(1, 1024)

    def train(model: nn.Module) -> float:
        engine, *_ = zeropage.initialize(model=model, config=config)
        before = engine(x.bfloat16())
        engine.backward(before)
        engine.step()
        assert engine.was_step_applied()
        after = engine(x.bfloat16()).item()
        engine.destroy()
        return before.item() - after

    with zeropage.zero.Init(config_dict_or_path=config, enabled=init):
        first = MostlyFrozen(layers=1)
    train(first)  # starts torch's and the transport's threads
    found = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "/proc/self/status has no line VmSize"
    mapped = int(found[1]) * 1024
    limit = mapped + MEMORY_LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    with zeropage.zero.Init(config_dict_or_path=config, enabled=init):
        model = MostlyFrozen()
    parameter_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    return {"parameter_bytes": parameter_bytes, "change": train(model)}


def test_a_model_larger_than_memory_is_built_and_trained(little_address_space_per_thread, tmp_path):
    """Catches a rank that holds the whole model at any moment: while it is built, or when the engine takes it over."""
    without = start_ranks(1, "test_init", "train_under_limit", json.dumps({"init": False}), tmp_path)[0]
    try:
        for found in run_processes(2, "test_init", "train_under_limit", json.dumps({"init": True}), tmp_path):
            assert found["parameter_bytes"] > MEMORY_LIMIT_BYTES
            assert found["change"] != 0
        error = without.communicate(timeout=60)[1]
    finally:
        without.kill()
    assert without.returncode != 0
    assert "can't allocate memory" in error, error


def on_ranks(function, **faults):
    return run_ranks(2, function, timeout_s=20, **faults)


def matrices(count: int) -> nn.ParameterList:
    return nn.ParameterList(torch.full((64, 64), float(i)) for i in range(count))


@pytest.mark.parametrize("two_sided", [False, True])
def test_gathered_parameters_before_initialize(two_sided):
    """Catches raw access to sharded parameters without an error, and edits by one rank that others do not get."""

    def run(rank, communicator):
        with zeropage.zero.Init(config=config_in_shards()):
            parameters = matrices(8)
        assert is_absent(parameters[0])
        with pytest.raises(RuntimeError, match=r"tensor 0 of the Init scope.*GatheredParameters"):
            parameters[0].detach().numpy()
        with zeropage.zero.GatheredParameters(list(parameters), modifier_rank=1):
            assert [p.detach().numpy()[0, 0] for p in parameters] == list(range(8))
            if rank == 1:
                parameters[3].data.fill_(42)
        return [p.mean().item() for p in parameters]

    assert on_ranks(run, two_sided=two_sided) == [[0, 1, 2, 42, 4, 5, 6, 7]] * 2


def test_buffers_are_whole_after_initialize():
    """Catches buffers that stay sharded: a rank that evaluates without the others would wait for them."""

    def run(rank, communicator):
        with zeropage.zero.Init(config=config_in_shards()):
            module = nn.Module()
            module.register_buffer("mask", torch.full((64, 64), 3.0))
            module.weights = matrices(6)
        assert is_absent(module.mask)
        zeropage.initialize(model=module, config=config_in_shards())
        return module.mask.sum().item() if rank == 0 else None

    assert on_ranks(run) == [3.0 * 64 * 64, None]


def test_a_module_made_before_is_taken_in():
    """Catches parameters that stay unsharded, tied ones that are adopted twice, and an engine that does not find
    them."""

    def run(rank, communicator):
        module = nn.Module()
        module.weights = matrices(6)
        module.tied = module.weights[2]
        zeropage.zero.Init(module=module, config_dict_or_path=config_in_shards())
        assert sum(is_absent(p) for p in module.parameters()) >= 4
        engine, *_ = zeropage.initialize(model=module, config=config_in_shards())
        return [p.mean().item() for p in engine.module.weights]

    assert on_ranks(run) == [[0, 1, 2, 3, 4, 5]] * 2


def test_initialize_ends_the_scope():
    """Catches activations that are taken for parts of a model."""

    def run(rank, communicator):
        with zeropage.zero.Init(config=config_in_shards()):
            module = nn.Module()
            module.weights = matrices(4)
            zeropage.initialize(model=module, config=config_in_shards())
            made_after = torch.ones(64, 64)
        return zeropage._C.is_deferred(made_after)

    assert on_ranks(run) == [False, False]


@pytest.mark.parametrize(("world", "stage", "enabled"), [(1, 3, True), (2, 2, True), (2, 3, False)])
def test_where_nothing_is_sharded_it_does_nothing(world, stage, enabled):
    """Catches a scope that communicates, or keeps tensors, where parameters are whole anyway."""

    def run(rank, communicator):
        moved = communicator.bytes_moved
        with zeropage.zero.Init(config=config_of(stage, batch=8), enabled=enabled):
            parameters = matrices(3)
        return any(zeropage._C.is_deferred(p) for p in parameters) or communicator.bytes_moved > moved

    assert run_ranks(world, run) == [False] * world


def test_dtype_is_the_default_type_inside():
    """Catches an argument `dtype` without effect, or one that remains the default type after the scope."""
    with zeropage.zero.Init(dtype=torch.bfloat16):
        assert nn.Linear(2, 2).weight.dtype == torch.bfloat16
    assert nn.Linear(2, 2).weight.dtype == torch.float32


def test_what_is_not_built_is_refused():
    """Catches arguments that are ignored silently."""
    with pytest.raises(ConfigError, match="remote_device is not available"):
        zeropage.zero.Init(remote_device="nvme")
    with pytest.raises(ConfigError, match="got both"):
        zeropage.zero.Init(config={}, config_dict_or_path={})
