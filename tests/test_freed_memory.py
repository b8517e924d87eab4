"""Freed memory of a device can be used by the stream that made it. If another stream has used it last, that use must
end first. Checked on the simulated device (simulated_device/README.md), which poisons what is freed."""

import contextlib
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerator
import pytest
import simulated_device
import torch
from test_device_path import make_engine
from test_device_streams import TwoStreams
from test_gpu_training import run_on_two_devices
from torch import nn
from training import config_of, flat_parameters, token_batch

import zeropage

pytestmark = pytest.mark.simulated


def assert_trained_alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() < 2e-5


@pytest.mark.parametrize("look", [lambda weight: weight.grad, zeropage.utils.safe_get_full_grad])
def test_a_sum_that_another_stream_has_gathered(look: Callable[[torch.Tensor], torch.Tensor]):
    """Catches the sum of a page that the first read of a gradient computes on a side stream: the step on the main
    stream reads it, and its memory is freed for the side stream."""
    engine = make_engine(accelerator.device(), 2)
    expected = make_engine("cpu", 2)
    weight = engine.module.inner.embedding.weight
    main, side = torch.accelerator.current_stream(), torch.Stream(accelerator.device())
    with simulated_device.delays(seed=1, max_us=3000):
        for step in range(3):
            for each in (engine, expected):
                each.backward(each(*token_batch(step)))
            side.wait_stream(main)
            with side:
                seen = look(weight) * 2  # nothing waits for this, because it only reads the gradient
            engine.step()
            expected.step()
            with side:
                assert seen.isfinite().all()
        found = flat_parameters(engine.module).cpu()
    assert_trained_alike(found, flat_parameters(expected.module))


def test_a_sum_that_is_dropped_on_a_third_stream():
    """Catches the same sum when zero_grad frees it while the main stream still reads it."""
    engine = make_engine(accelerator.device(), 2)
    weight = engine.module.inner.embedding.weight
    main = torch.accelerator.current_stream()
    side, third = (torch.Stream(accelerator.device()) for _ in range(2))
    with simulated_device.delays(seed=1, max_us=3000):
        engine.backward(engine(*token_batch(0)))
        side.wait_stream(main)
        with side:
            first = weight.grad * 2
        gradient = zeropage.utils.safe_get_full_grad(weight)
        assert gradient is not None
        second = gradient * 2
        with third:
            engine.optimizer.zero_grad()
        assert torch.equal(first.cpu(), second.cpu())


def test_a_sum_that_is_written_on_another_stream_than_it_is_read():
    """Catches a gradient that the program sets while a side stream still computes the page's sum, or reads it."""
    engine = make_engine(accelerator.device(), 2)
    weight = engine.module.inner.embedding.weight
    main, side = torch.accelerator.current_stream(), torch.Stream(accelerator.device())
    value = torch.ones(weight.shape, device=weight.device)
    with simulated_device.delays(seed=1, max_us=3000):
        engine.backward(engine(*token_batch(0)))
        side.wait_stream(main)
        with side:
            seen = weight.grad * 2
        zeropage.utils.safe_set_full_grad(weight, value)
        with side:
            assert not torch.equal(seen.cpu(), 2 * value.cpu())
        written = zeropage.utils.safe_get_full_grad(weight)
        assert written is not None and torch.equal(written.cpu(), value.cpu())


@pytest.mark.parametrize("after_backward", [False, True])
@pytest.mark.parametrize("stage", [0, 2])
def test_a_gradient_that_the_program_made_on_another_stream(stage: int, after_backward: bool):
    """Catches the program's own gradient, which the engine drops while it still reads it: the program cannot know when
    that is, and the memory is the side stream's."""

    def trained(device: str | torch.device) -> torch.Tensor:
        engine = make_engine(device, stage)
        weight = engine.module.inner.embedding.weight
        side = None if device == "cpu" else torch.Stream(device)
        for step in range(2):
            loss = engine(*token_batch(step))
            if after_backward:
                engine.backward(loss)
            with side or contextlib.nullcontext():
                weight.grad = torch.ones(weight.shape, device=weight.device)
            if side is not None:
                torch.accelerator.current_stream().wait_stream(side)
            if not after_backward:
                engine.backward(loss)
            engine.step()
        return flat_parameters(engine.module).cpu()

    expected = trained("cpu")
    with simulated_device.delays(seed=1, max_us=3000):
        assert_trained_alike(trained(accelerator.device()), expected)


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_unplanned_gradients_of_two_streams(stage: int, again: bool):
    """Catches gradients of a layer that is trained later: they wait, are added up when the layer is used again, and get
    a place when another one has been used, on another stream."""

    def trained(device: str | torch.device) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.ModuleList(nn.Linear(32, 32) for _ in range(2)).to(device)
        late, other = model
        late.requires_grad_(False)
        groups = [{"params": list(model.parameters())}]
        config = config_of(stage, batch=8, accumulation=2, zeropage={"page_numel": 1})
        engine, *_ = zeropage.initialize(model=model, model_parameters=groups, config=config, device=device)
        late.requires_grad_(True)
        x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).to(device)
        if device != "cpu":
            torch.accelerator.synchronize()
        for layer in (late, late if again else other):
            with contextlib.nullcontext() if device == "cpu" else torch.Stream(device):
                engine.backward(layer(x).square().mean())
                engine.step()
        if device != "cpu":
            torch.accelerator.synchronize()
        return flat_parameters(model).cpu()

    expected = trained("cpu")
    for seed in range(2):
        with simulated_device.delays(seed, max_us=3000):
            assert_trained_alike(trained(accelerator.device()), expected)


def test_gradients_that_wait_for_a_place_and_are_dropped():
    """Catches the sum of such gradients, which zero_grad frees while the second stream still adds to it."""
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)).to(accelerator.device())
    model[0].requires_grad_(False)
    groups = [{"params": list(model.parameters())}]
    config = config_of(0, batch=12, accumulation=3)
    engine, *_ = zeropage.initialize(model=model, model_parameters=groups, config=config, device=accelerator.device())
    model[0].requires_grad_(True)
    x = torch.randn(4, 32, device=accelerator.device())
    torch.accelerator.synchronize()
    with simulated_device.delays(seed=1, max_us=3000):
        for side in [torch.Stream(accelerator.device()) for _ in range(2)]:
            with side:
                engine.backward(engine(x).square().mean())
                engine.step()
        engine.zero_grad()


def test_gradients_that_are_dropped_while_their_squares_are_summed():
    """Catches gradients that were made on one stream, whose squares another one sums, and which zero_grad frees on a
    third one. The squares of the device start when those of a page on another stream follow: of the layer that gets no
    gradient, which the end of the backward completes."""
    device = accelerator.device()
    torch.manual_seed(1)
    model = TwoStreams(device)
    model.side = torch.Stream(device)
    with model.side:  # so that gradients of every second layer arrive on the side stream
        graph = [p.view_as(p) for layer in model.layers[1::2] for p in layer.parameters()]
    model.unused = nn.Linear(32, 128, device=device)
    config = config_of(2, batch=4, zeropage={"page_numel": 2500})
    engine, *_ = zeropage.initialize(model=model, config=config, device=device)
    third = torch.Stream(device)
    with simulated_device.delays(seed=1, max_us=3000):
        for step in range(3):
            x = torch.randn(4, 32, generator=torch.Generator().manual_seed(step)).to(device)
            loss = engine(x)
            third.wait_stream(torch.accelerator.current_stream())
            with third:
                engine.backward(loss)
                engine.optimizer.zero_grad()
    assert graph


def test_parameters_that_outlive_their_engine():
    """Catches frames, and page-locked shards, that are freed with the last parameter while an operator uses it, or
    while earlier fetches are not complete."""
    zero = {"offload_param": {"device": "cpu"}, "stage3_max_live_parameters": 20000}
    for seed in range(3):
        engine = make_engine(accelerator.device(), 3, zero_optimization=zero)
        engine.backward(engine(*token_batch(0)))
        engine.step()
        weights = [each.weight for each in (*engine.module.inner.expand, *engine.module.inner.contract)]
        engine.destroy()
        del engine
        gc.collect()
        with simulated_device.delays(seed, max_us=3000), torch.no_grad():
            sums = [weight.sum() for weight in weights]
            del weights
            gc.collect()
            assert all(each.isfinite() for each in sums)


@pytest.mark.parametrize("stage", [0, 2])
def test_states_that_are_offloaded_while_another_stream_writes_gradients(stage: int):
    """Catches memory of gradients that offload_states frees while an abandoned backward still writes into it."""
    engine = make_engine(accelerator.device(), stage, batch=16, accumulation=2)
    side = torch.Stream(accelerator.device())
    with simulated_device.delays(seed=1, max_us=3000):
        side.wait_stream(torch.accelerator.current_stream())
        with side:
            engine.backward(engine(*token_batch(0)))
        engine.optimizer.zero_grad()
        engine.offload_states()
        engine.reload_states()
    assert flat_parameters(engine.module).isfinite().all()


def test_parameters_that_are_trained_while_updated_ones_are_copied():
    """Catches buffers of the update on the host that are replaced, for a layer that is trained from now on, while
    updated parameters are copied from the middle of the old ones."""

    def trained(device: str | torch.device) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 128)]).to(device)
        model[2].requires_grad_(False)
        groups = [{"params": list(model.parameters())}]
        own = {"offloaded_update": "host", "speculation_bytes": 0}
        zero = {"offload_optimizer": {"device": "cpu", "pin_memory": True}}
        config = config_of(1, zeropage=own, zero_optimization=zero, clipping=0.0, batch=4)
        engine, *_ = zeropage.initialize(model=model, model_parameters=groups, config=config, device=device)
        x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).to(device)
        engine.backward(model[1](x).square().mean())  # the first layer of the page gets no gradient
        engine.step()
        model.requires_grad_(False)
        model[2].requires_grad_(True)
        engine.backward(model[2](x).square().mean())
        engine.step()
        return flat_parameters(model).cpu()

    expected = trained("cpu")
    for seed in range(3):
        with simulated_device.delays(seed, max_us=3000):
            assert_trained_alike(trained(accelerator.device()), expected)


SCRIPT = """
    import sys; sys.path[:0] = {paths!r}
    import accelerator; accelerator.load_if_told()
    import os, torch; torch.set_num_threads(1)
    from test_freed_memory import CASES

    device = accelerator.device(int(os.environ["RANK"]))
    for name, run in CASES.items():
        run(device)
        try:
            accelerator.check()
        except Exception as error:
            raise AssertionError(name) from error
    print("devices", device, flush=True)
"""


def train_two_streams(device: torch.device, zero: dict[str, Any], accumulation: int = 1, **sections: Any) -> None:
    """Reductions begin on the stream of every second layer, and end on the main one."""
    torch.manual_seed(1)
    model = TwoStreams(device)
    dtype = torch.bfloat16 if "bf16" in sections else torch.float32
    model.to(dtype)
    model.side = torch.Stream(device)
    with model.side:
        graph = [p.view_as(p) for layer in model.layers[1::2] for p in layer.parameters()]
    config = config_of(
        0,
        batch=8 * accumulation,
        accumulation=accumulation,
        zero_optimization=zero,
        zeropage={"page_numel": 1000, **sections.pop("zeropage", {})},
        **sections,
    )
    engine, *_ = zeropage.initialize(model=model, config=config, device=device)
    for step in range(2 * accumulation):
        x = torch.randn(4, 32, generator=torch.Generator().manual_seed(step)).to(device, dtype)
        engine.backward(engine(x).float())
        engine.step()
    torch.accelerator.synchronize()
    engine.destroy()
    del graph


def use_from_three_streams(device: torch.device, writes: bool, **zero: Any) -> None:
    """A parameter that the main stream has used is evicted for one of another stream, and is used again by the main
    stream."""
    torch.manual_seed(1)
    model = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(4)).to(device)
    config = config_of(3, zero_optimization={"stage3_max_live_parameters": 2100, **zero}, zeropage={"page_numel": 1000})
    engine, *_ = zeropage.initialize(model=model, config=config, device=device)
    side = torch.Stream(device)
    torch.accelerator.synchronize()
    with torch.no_grad():
        if writes:
            model[0].weight.fill_(3.0)
        with side:
            first = model[0].weight.sum() if not writes else None
            for layer in list(model)[1:]:
                layer.weight.sum()
        second = model[0].weight.sum()
        torch.accelerator.synchronize()
        assert second == 3072.0 if writes else second == first
    engine.destroy()


def shards_of_two_streams(device: torch.device) -> None:
    """A page that one stream has written is written back on another one, and gathered again on the first. Nothing else
    orders the two: each stream takes frames that it has used, the collective between the two is of the nearby ranks, on
    another communicator, and the host sees no end of the second stream."""
    torch.manual_seed(1)
    model = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(4)).to(device)
    zero = {"stage3_max_live_parameters": 3 * 4096, "zero_hpz_partition_size": 2}
    config = config_of(3, zero_optimization=zero, zeropage={"page_numel": 1000})
    engine, *_ = zeropage.initialize(model=model, config=config, device=device)
    main, side = torch.accelerator.current_stream(device), torch.Stream(device)
    torch.accelerator.synchronize()
    with torch.no_grad():
        model[2].weight.sum()  # has a second shard from now on
        model[0].weight.fill_(3.0)
        model[3].weight.sum()
        with side, simulated_device.held():
            model[1].weight.sum()
            model[2].weight.sum()  # takes the first one's place
            with main:
                found = model[0].weight.sum()  # takes that of the last one
        torch.accelerator.synchronize()
    assert found == 3.0 * 4096
    engine.destroy()


def second_shards_of_two_streams(device: torch.device) -> None:
    """A second shard that one stream has written is gathered on another one, with frames that do not order the two."""
    torch.manual_seed(1)
    model = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(3)).to(device)
    zero = {"stage3_max_live_parameters": 2 * 4096, "zero_hpz_partition_size": 2}
    config = config_of(3, zero_optimization=zero, zeropage={"page_numel": 1000})
    engine, *_ = zeropage.initialize(model=model, config=config, device=device)
    side = torch.Stream(device)
    torch.accelerator.synchronize()
    with torch.no_grad():
        first = model[0].weight.sum()
        with side:
            model[1].weight.sum()
        model[2].weight.sum()  # takes the first one's place
        with side:
            second = model[0].weight.sum()  # takes that of the second one
        torch.accelerator.synchronize()
    assert second == first
    engine.destroy()


def train_more_on_another_stream(device: torch.device) -> None:
    """A larger layer is trained from the second micro step on, and only the first one is on the side stream."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 96), nn.Linear(96, 32)).to(device)
    model[1].requires_grad_(False)
    model[2].requires_grad_(False)
    config = config_of(
        2,
        batch=16,
        accumulation=2,
        zeropage={"page_numel": 1000},
        bf16={"enabled": True},
        data_types={"grad_accum_dtype": "bf16"},
    )
    groups = [{"params": list(model.parameters())}]
    engine, *_ = zeropage.initialize(model=model, model_parameters=groups, config=config, device=device)
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    torch.accelerator.synchronize()
    with torch.Stream(device):
        engine.backward(engine(x).float().square().mean())
        engine.step()
    model.requires_grad_(True)
    engine.backward(engine(x).float().square().mean())
    engine.step()
    torch.accelerator.synchronize()
    engine.destroy()


def build_on_two_streams(device: torch.device) -> None:
    """Tensors of zero.Init are sharded, and freed, while another stream initializes or reads them."""
    config = config_of(3, zero_optimization={"stage3_max_live_parameters": 6000})
    side = torch.Stream(device)
    with zeropage.zero.Init(config_dict_or_path=config), torch.no_grad():
        layers = []
        for index in range(6):
            with side if index % 2 else contextlib.nullcontext():
                layers.append(nn.Linear(64, 64, bias=False, device=device))
                layers[-1].weight.fill_(index)
        with side:
            sums = [layer.weight.sum() for layer in layers]
        for layer in layers:
            layer.weight.mul_(2)
    torch.accelerator.synchronize()
    assert [each.item() for each in sums] == [4096.0 * index for index in range(6)]


def make_on_one_stream(device: torch.device, fills: bool) -> None:
    """Tensors of zero.Init that were made, or filled, on one stream are sharded because of those of another one."""
    config = config_of(3, zero_optimization={"stage3_max_live_parameters": 3 * 4096})
    side = torch.Stream(device)
    made = []
    with zeropage.zero.Init(config_dict_or_path=config), torch.no_grad():
        if fills:
            made = [torch.full((64, 64), 7.0, device=device) for _ in range(2)]
            side.wait_stream(torch.accelerator.current_stream())
        with side:
            for index in range(2):
                made[index].fill_(index) if fills else made.append(torch.full((64, 64), float(index), device=device))
        later = [torch.full((64, 64), 5.0, device=device) for _ in range(4)]
        torch.accelerator.current_stream().wait_stream(side)
        sums = [each.sum() for each in made]
    torch.accelerator.synchronize()
    assert [each.item() for each in sums] == [0.0, 4096.0] and later


CASES = {
    "built on two streams": build_on_two_streams,
    "made on one stream": lambda device: make_on_one_stream(device, fills=False),
    "filled on one stream": lambda device: make_on_one_stream(device, fills=True),
    "reduced into shards": lambda device: train_two_streams(device, {"stage": 2}),
    "reduced at once": lambda device: train_two_streams(device, {"stage": 2, "reduce_scatter": False}),
    "reduced in place": lambda device: train_two_streams(device, {"stage": 0}),
    "reduced in place, in bf16": lambda device: train_two_streams(device, {"stage": 0}, bf16={"enabled": True}),
    "reduced by the backend": lambda device: train_two_streams(
        device, {"stage": 2}, bf16={"enabled": True}, zeropage={"deterministic_reduction": False}
    ),
    "another type on the way": lambda device: train_two_streams(device, {"stage": 1}, communication_data_type="bf16"),
    "accumulated in fp32": lambda device: train_two_streams(device, {"stage": 1}, 2, bf16={"enabled": True}),
    "coded": lambda device: train_two_streams(
        device, {"stage": 2, "zero_quantized_gradients": True}, bf16={"enabled": True}
    ),
    "shards that are written": lambda device: use_from_three_streams(device, writes=True),
    "second shards": lambda device: use_from_three_streams(device, writes=False, zero_hpz_partition_size=2),
    "shards of two streams": shards_of_two_streams,
    "second shards of two streams": second_shards_of_two_streams,
    "trained later": train_more_on_another_stream,
}


def test_collectives_of_two_streams(tmp_path: Path):
    """Catches memory of a reduction that is freed on another stream than it was made on, shards that one stream writes
    and another one gathers, and buffers that are replaced while a stream uses them."""
    run_on_two_devices(SCRIPT, tmp_path, gloo=False)
