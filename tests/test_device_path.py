"""What the engine asks of a device: when it waits, what it copies, and that nothing is used before it is there. Counted
and checked on the simulated device (simulated_device/README.md)."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerator
import pytest
import simulated_device
import torch
from processes import run_processes
from torch import nn
from training import config_of, flat_parameters, part_of_batch, small_net, token_batch

import zeropage
from zeropage import distributed

pytestmark = pytest.mark.simulated

STEPS = 4


def make_engine(device: str | torch.device, stage: int, **options: Any) -> Any:
    """An engine for the small net; options as config_of's."""
    options["zeropage"] = {"page_numel": 4096, **options.get("zeropage", {})}
    model = accelerator.OnDevice(small_net(), torch.device(device))
    engine, *_ = zeropage.initialize(model=model, config=config_of(stage, **copy.deepcopy(options)), device=device)
    return engine


def train(device: str | torch.device, stage: int, **options: Any) -> torch.Tensor:
    engine = make_engine(device, stage, **options)
    for step in range(STEPS * options.get("accumulation", 1)):
        engine.backward(engine(*token_batch(step)))
        engine.step()
    final = flat_parameters(engine.module).cpu()
    engine.destroy()
    return final


def blocked(counted: dict[str, int]) -> int:
    """How often the host was inside of the device's library until something was done."""
    return counted["waits"] + counted["fetches"] + counted["uploads"]


@pytest.fixture(params=[True, False], ids=["kernels", "operators"])
def kernels(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Updates and squares by kernels of our own, or by torch's operators."""
    simulated_device.set_kernels(request.param)
    yield request.param
    simulated_device.set_kernels(True)


@pytest.mark.parametrize("optimizer", ["AdamW", "Lamb"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_waits_for_the_device_once(stage: int, optimizer: str, kernels: bool):
    """Catches a value that is fetched per parameter or per page, and a wait that blocks in the device's library."""
    params = {"type": optimizer, "params": {"lr": 1e-3}}
    engine = make_engine(accelerator.device(), stage, bf16={"enabled": True}, optimizer=params)
    for step in range(3):
        loss = engine(*token_batch(step))
        torch.accelerator.synchronize()
        with simulated_device.count() as counted:
            engine.backward(loss)
            engine.step()
        # One fetch of all squares, which the host polls for; Lamb fetches its norms, too.
        assert blocked(counted) == 0 and counted["polled"] <= (2 if optimizer == "Lamb" else 1), counted


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_updates_of_many_pages_are_one_launch(stage: int):
    """Catches a launch per page: the net has 14 parameters on more pages than one, and a launch takes 32."""
    engine = make_engine(accelerator.device(), stage, bf16={"enabled": True}, zeropage={"page_numel": 4096})
    for step in range(3):
        loss = engine(*token_batch(step))
        engine.backward(loss)
        torch.accelerator.synchronize()
        with simulated_device.count() as counted:
            engine.step()
            torch.accelerator.synchronize()
        assert counted["update_launches"] == 1, counted


def test_parameters_that_are_being_copied_are_not_updated():
    """Catches an update on the host that writes parameters while a copy of them to the device reads them: one that was
    begun early for an operator that was never called, so that nothing on the device waits for it."""
    sections: dict[str, Any] = {"zeropage": {"offloaded_update": "host"}}
    sections["zero_optimization"] = {
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu", "pin_memory": True},
        "stage3_max_live_parameters": 20000,
    }
    expected = train("cpu", 3, **sections)
    for seed in range(3):
        with simulated_device.delays(seed, max_us=3000):
            engine = make_engine(accelerator.device(), 3, **sections)
            for step in range(STEPS):
                engine.backward(engine(*token_batch(step)))
                for parameter in list(engine.module.parameters())[: 2 if step == STEPS - 1 else None]:
                    parameter.detach() * 2
                engine.step()
            assert torch.equal(flat_parameters(engine.module).cpu(), expected), f"seed {seed}"
            engine.destroy()


def test_sums_that_are_rounded_before_they_are_sent():
    """Catches a sum in another type than the host keeps it in, freed while its copy is on the way."""
    sections: dict[str, Any] = {
        "zero_optimization": {"offload_optimizer": {"device": "cpu"}},
        "zeropage": {"offloaded_update": "host", "speculation_bytes": 0},
        "bf16": {"enabled": True},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "bf16"},
    }
    expected = train("cpu", 2, **sections)
    with simulated_device.delays(seed=1, max_us=3000):
        assert torch.allclose(train(accelerator.device(), 2, **sections), expected, atol=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("stage", "parameters_too"), [(0, False), (1, False), (2, False), (3, False), (3, True)])
def test_an_engine_may_end_at_any_time(stage: int, parameters_too: bool, precision: str):
    """Catches page-locked memory that is freed, and handed out again, while it is still being copied."""
    sections: dict[str, Any] = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    sections["zeropage"] = {"speculation_bytes": 1 << 20}
    if parameters_too:
        sections["zero_optimization"]["offload_param"] = {"device": "cpu"}
    if precision == "bf16":
        sections["bf16"] = {"enabled": True}
    with simulated_device.delays(seed=stage, max_us=3000):
        engine = make_engine(accelerator.device(), stage, clipping=0.0, **sections)
        for step in range(3):
            engine.backward(engine(*token_batch(step)))
            engine._core.wait_for_updates()  # so that new parameters leave the undo log
            engine.step()
        module = engine.module
        engine.destroy()
        overwritten = [torch.full((1 << 18,), float("nan"), pin_memory=True) for _ in range(4)]
        values = [parameter.cpu() for parameter in module.parameters() if stage != 3]
    assert all(torch.isfinite(value).all() for value in values) and overwritten


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [2, 3])
def test_offloaded_gradients_have_the_bits_of_the_cpu(stage: int, precision: str, steps: int):
    """Catches sums that are used before they have arrived, in the wrong type, or added twice or not at all. The update
    runs on the host in both, so all bits are the same."""
    sections: dict[str, Any] = {
        "zero_optimization": {"offload_optimizer": {"device": "cpu"}},
        "zeropage": {"offloaded_update": "host"},
    }
    sections |= {"batch": 8 * steps, "accumulation": steps, "clipping": 0.0}
    if precision == "bf16":
        sections["bf16"] = {"enabled": True}
    if stage == 3:
        sections["zero_optimization"]["offload_param"] = {"device": "cpu"}
    expected = train("cpu", stage, **sections)
    for seed in range(3):
        with simulated_device.delays(seed, max_us=2000):
            assert torch.equal(train(accelerator.device(), stage, **sections), expected), f"seed {seed}"


def test_only_a_boundary_waits_for_offloaded_gradients():
    """Catches a device that every micro step waits for."""
    offload = {"offload_optimizer": {"device": "cpu"}}
    engine = make_engine(accelerator.device(), 2, batch=24, accumulation=3, zero_optimization=offload)
    for step in range(6):
        loss = engine(*token_batch(step))
        torch.accelerator.synchronize()
        with simulated_device.count() as counted:
            engine.backward(loss)
            engine.step()
        if step % 3 != 2:
            assert blocked(counted) == 0, counted


def test_offloaded_parameters_are_fetched_ahead():
    """Catches parameters that are copied where they are used, while all later work waits."""
    zero = {"offload_param": {"device": "cpu"}, "stage3_max_live_parameters": 20000}
    engine = make_engine(accelerator.device(), 3, zero_optimization=zero, bf16={"enabled": True})
    for step in range(3):
        batch = [x.to(accelerator.device()) for x in token_batch(step)]
        torch.accelerator.synchronize()
        with simulated_device.count() as counted:
            loss = engine(*batch)
        assert blocked(counted) == 0, counted
        engine.backward(loss)
        engine.step()
    assert engine._core.pager_stats.prefetches > 0


def test_updates_on_the_host_wait_for_what_they_need():
    """Catches waits per parameter, and more than one per page, which an update on the host needs for the page's
    gradient."""
    sections = {
        "zero_optimization": {"offload_optimizer": {"device": "cpu"}},
        "zeropage": {"offloaded_update": "host", "speculation_bytes": 0},
    }
    engine = make_engine(accelerator.device(), 1, bf16={"enabled": True}, **sections)
    for step in range(3):
        loss = engine(*token_batch(step))
        torch.accelerator.synchronize()
        with simulated_device.count() as counted:
            engine.backward(loss)
            engine.step()
        assert blocked(counted) == 0 and counted["polled"] <= engine._core.page_count + 2, counted


def test_a_page_whose_first_parameter_has_no_gradient():
    """Catches page-locked memory that is freed, or filled again, while updated parameters are copied from its
    middle."""
    zero = {"offload_optimizer": {"device": "cpu"}}

    def trained(device: str | torch.device) -> torch.Tensor:
        torch.manual_seed(0)
        layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(4))
        config = config_of(
            1, zero_optimization=zero, zeropage={"offloaded_update": "host"}, bf16={"enabled": True}, clipping=0.0
        )
        engine, *_ = zeropage.initialize(model=layers, config=config, device=device)
        assert engine._core.page_count == 1
        for step in range(4):
            x = torch.randn(8, 24, generator=torch.Generator().manual_seed(step)).to(engine.device, torch.bfloat16)
            for layer in list(engine.module)[step % 2 :]:  # the first parameters get none in every other step
                x = layer(x)
            engine.backward(x.float().square().mean())
            engine.step()
        module = engine.module
        engine.destroy()
        overwritten = torch.full((1 << 16,), float("nan"), pin_memory=True) if engine.device.type != "cpu" else None
        found = flat_parameters(module).cpu()
        del overwritten
        return found

    expected = trained("cpu")
    for seed in range(3):
        with simulated_device.delays(seed, max_us=3000):
            assert torch.equal(trained(accelerator.device()), expected), f"seed {seed}"


def test_memory_is_returned_to_the_system():
    """Catches memory that initialize or offload_states frees, and that remains in torch's cache, where no other process
    can use it."""
    torch.accelerator.empty_cache()
    engine = make_engine(accelerator.device(), 0)
    assert torch.accelerator.memory_reserved() == torch.accelerator.memory_allocated()
    for step in range(2):
        engine.backward(engine(*token_batch(step)))
        engine.step()
    reserved = torch.accelerator.memory_reserved()
    state = sum(now for now, _ in engine._core.measured_bytes().values())
    engine.offload_states()
    assert torch.accelerator.memory_reserved() <= reserved - state
    engine.reload_states()


def test_a_lack_of_memory_names_what_the_engine_holds():
    """Catches torch's error without ours: torch's has bytes but no kinds."""
    engine = make_engine(accelerator.device(), 0)
    model = engine.module
    model.forward = lambda *_: torch.empty(1 << 50, device=accelerator.device())
    with pytest.raises(torch.OutOfMemoryError) as raised:
        engine()
    (note,) = raised.value.__notes__
    assert all(word in note for word in ("parameters ", "gradients ", "optimizer ", "frames ", "buffers ", "KiB")), note


def test_a_step_without_a_backward_names_graphs_of_the_device():
    """Catches a message without advice for programs that replay a graph with the backward in it."""
    with pytest.raises(zeropage.errors.UsageError, match="before backward.*replayed.*capture the forward alone"):
        make_engine(accelerator.device(), 0).step()


def contexts_of_a_rank(zero: dict[str, Any]) -> list[int]:
    """The devices on which a rank that uses its own device has a context after training."""
    rank = distributed.current_world().rank
    with simulated_device.visible(True):
        torch.accelerator.set_device_index(rank)
        sections: dict[str, Any] = {"zero_optimization": zero, "zeropage": {"speculation_bytes": 1 << 20}}
        engine = make_engine(accelerator.device(rank), 2, **sections)
        for step in range(2):
            engine.backward(engine(*part_of_batch(token_batch(step), 2, rank)))
            engine.step()
        engine.destroy()
        torch.accelerator.synchronize()
    return simulated_device.devices_with_context()


@pytest.mark.parametrize("zero", [{}, {"offload_optimizer": {"device": "cpu"}}])
def test_a_rank_uses_no_memory_of_other_ranks_devices(zero: dict[str, Any], tmp_path: Path):
    """Catches a thread of the engine's own that uses the device before it has chosen one: a new thread's is device 0,
    and CUDA would make a context of every rank there, each of half a gigabyte."""
    arguments = json.dumps({"zero": zero})
    assert run_processes(2, "test_device_path", "contexts_of_a_rank", arguments, tmp_path) == [[0], [1]]
