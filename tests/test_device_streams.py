"""Programs that use several streams of a device: who uses a frame, a gradient or a parameter on another stream waits
for its previous user. Checked on the simulated device (simulated_device/README.md)."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import accelerator
import pytest
import simulated_device
import torch
from test_device_path import STEPS, make_engine, train
from torch import nn
from training import config_of, flat_parameters, token_batch

import zeropage

pytestmark = pytest.mark.simulated


def test_values_written_on_another_stream_are_written_back():
    """Catches a page that is written back on one stream while another one still writes into it: no operator of the
    program runs in between, so the engine has to wait."""
    zero = {"offload_param": {"device": "cpu"}, "stage3_max_live_parameters": 9000}
    engine = make_engine(accelerator.device(), 3, zero_optimization=zero)
    net = engine.module.inner
    before = net.embedding.weight.detach().cpu()
    with simulated_device.delays(seed=1, max_us=3000), torch.no_grad():
        with torch.Stream(accelerator.device()):
            net.embedding.weight.add_(1)
        for layer in (*net.expand, *net.contract):  # more than may be gathered, so that the embedding is evicted
            layer(torch.ones(1, layer.in_features, device=accelerator.device()))
    assert torch.equal(net.embedding.weight.detach().cpu(), before + 1)


def test_an_update_waits_for_users_of_a_gathered_scope(tmp_path: Path):
    """Catches new values that arrive in the frame of a scope while another stream still reads the old ones there."""
    drive = {"device": "nvme", "nvme_path": str(tmp_path), "buffer_count": 3}
    zero = {"offload_optimizer": drive, "offload_param": {**drive, "max_in_cpu": 0}}
    aio = {"block_size": 4096, "queue_depth": 4}
    for seed in range(3):
        with simulated_device.delays(seed, max_us=3000):
            engine = make_engine(accelerator.device(), 3, zero_optimization=zero, aio=aio)
            weight = engine.module.inner.embedding.weight
            side = torch.Stream(accelerator.device())
            for step in range(2):
                engine.backward(engine(*token_batch(step)))
                before = weight.detach().cpu()
                with zeropage.zero.GatheredParameters([weight]):
                    with side:
                        found = weight.detach() * 2
                    engine.step()
                    assert not torch.equal(weight.detach().cpu(), before)
                side.synchronize()
                with side:
                    assert torch.equal(found.cpu(), before * 2), f"seed {seed}"
            engine.destroy()


@pytest.mark.parametrize("stage", [0, 3])
def test_training_on_another_stream_than_initialize(stage: int, recwarn: pytest.WarningsRecorder):
    """Catches nodes of autograd that are kept from initialize: torch warns, and makes their stream and the current one
    wait for each other."""
    engine = make_engine(accelerator.device(), stage)
    expected = train("cpu", stage)
    side = torch.Stream(accelerator.device())
    side.wait_stream(torch.accelerator.current_stream())
    with side:
        for step in range(STEPS):
            engine.backward(engine(*token_batch(step)))
            engine.step()
        found = flat_parameters(engine.module).cpu()
    torch.accelerator.current_stream().wait_stream(side)
    assert torch.allclose(found, expected, atol=1e-6)
    assert not [str(warning.message) for warning in recwarn if "stream" in str(warning.message)]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stage", [0, 2])
def test_a_step_on_another_stream_than_its_backward(stage: int, accumulation: int, norm: bool):
    """Catches an update that reads gradients before the backward's stream has made them: with their norm, for which it
    waits, and without."""
    options: dict[str, Any] = {"batch": 8 * accumulation, "accumulation": accumulation}
    if not norm:
        options |= {"clipping": 0.0, "zero_optimization": {"compute_grad_norm": False}}
    engine = make_engine(accelerator.device(), stage, **options)
    main, side = torch.accelerator.current_stream(), torch.Stream(accelerator.device())
    with simulated_device.delays(seed=1, max_us=3000):
        for step in range(STEPS * accumulation):
            engine.backward(engine(*token_batch(step)))
            with side:
                engine.step()
            main.wait_stream(side)
        found = flat_parameters(engine.module).cpu()
    assert torch.allclose(found, train("cpu", stage, **options), atol=1e-6)


class Layers(nn.Module):
    """Uses its layers from the `first` one on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: torch.Tensor, first: int) -> torch.Tensor:
        for layer in self.layers[first:]:
            x = layer(x).tanh()
        return x.square().mean()


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_micro_steps_on_two_streams(stage: int, offload: bool):
    """Catches gradients of one stream that are added to, reduced, squared or used on another one before they are there:
    with some pages whose gradients were all made on the first."""
    options: dict[str, Any] = {"batch": 8, "accumulation": 2, "zeropage": {"page_numel": 1000}}
    if offload:
        options["zero_optimization"] = {"offload_optimizer": {"device": "cpu"}}

    def trained(device: str | torch.device) -> torch.Tensor:
        torch.manual_seed(0)
        engine, *_ = zeropage.initialize(
            model=Layers(), config=config_of(stage, **copy.deepcopy(options)), device=device
        )
        on_device = engine.device.type != "cpu"
        side = torch.Stream(engine.device) if on_device else contextlib.nullcontext()
        for step in range(3):
            x = torch.randn(4, 32, generator=torch.Generator().manual_seed(step)).to(engine.device)
            if on_device:
                torch.accelerator.synchronize()
            engine.backward(engine(x, 0))
            engine.step()
            with side:
                engine.backward(engine(x, 2))
                engine.step()
            if on_device:
                torch.accelerator.current_stream().wait_stream(side)
        found = flat_parameters(engine.module).cpu()
        engine.destroy()
        return found

    expected = trained("cpu")
    for seed in range(2):
        with simulated_device.delays(seed, max_us=3000):
            assert torch.allclose(trained(accelerator.device()), expected, atol=1e-6), f"seed {seed}"


@pytest.mark.parametrize("stage", [0, 1])
def test_gradients_that_are_added_on_another_stream_unplanned(stage: int):
    """Catches frames of 16 bit that become frames of fp32, for a second backward that the configuration does not
    declare, before the first one's stream has filled them."""

    def trained(device: str | torch.device) -> torch.Tensor:
        engine = make_engine(device, stage, bf16={"enabled": True})
        on_device = engine.device.type != "cpu"
        side = torch.Stream(engine.device) if on_device else contextlib.nullcontext()
        for step in range(2):
            engine.backward(engine(*token_batch(step)))
            with side:
                engine.backward(engine(*token_batch(step)))
                engine.step()
            if on_device:
                torch.accelerator.current_stream().wait_stream(side)
        found = flat_parameters(engine.module).cpu()
        engine.destroy()
        return found

    with simulated_device.delays(seed=1, max_us=3000):
        assert torch.allclose(trained(accelerator.device()), trained("cpu"), atol=1e-3)


def test_gradients_that_two_streams_read():
    """Catches mean gradients that one stream reads while another one, which has read them first, computes them; and
    gradients of the backward's stream that are freed while another one reads them."""
    engine = make_engine(accelerator.device(), 2, fp16={"enabled": True, "loss_scale": 8})
    weight = engine.module.inner.embedding.weight
    main, side = torch.accelerator.current_stream(), torch.Stream(accelerator.device())
    with simulated_device.delays(seed=1, max_us=3000):
        engine.backward(engine(*token_batch(0)))
        side.wait_stream(main)
        with side:
            one = weight.grad * 2
        other = weight.grad * 2
        side.wait_stream(main)
        with side:
            engine.step()
            assert torch.equal(one.cpu(), other.cpu()) and other.abs().max() > 0


class TwoStreams(nn.Module):
    """Half of the layers on a separate stream, as a user's model may do."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32, device=device) for _ in range(6))
        self.side: torch.Stream | None = None  # streams cannot be copied with a model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        main = torch.accelerator.current_stream()
        for layer in self.layers[::2]:
            x = layer(x).tanh()
        assert self.side is not None, "the caller gives the model its stream"
        self.side.wait_stream(main)
        with self.side:
            y = x
            for layer in self.layers[1::2]:
                y = layer(y).tanh()
        main.wait_stream(self.side)
        return (x * y).mean()


@pytest.mark.parametrize("older_graph", [False, True])
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_model_with_a_second_stream(stage: int, offload: bool, older_graph: bool):
    """Catches frames and gradients that one stream uses before another one has filled them. Where the program has an
    older graph of some parameters, their gradients arrive on its stream, and those of the others on the main one."""
    device = accelerator.device()
    zero: dict[str, Any] = {"stage": stage}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero |= {
                "offload_param": {"device": "cpu"},
                "stage3_max_live_parameters": 3000,
                "stage3_param_persistence_threshold": 0,
            }
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.01}},
        "zero_optimization": zero,
        "zeropage": {"page_numel": 1000},
    }
    for seed in range(3):
        torch.manual_seed(1)
        model = TwoStreams(device)
        plain = copy.deepcopy(model).to("cpu")
        model.side = torch.Stream(device)
        with model.side:
            graph = [p.view_as(p) for layer in model.layers[1::2] for p in layer.parameters()] if older_graph else []
        optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.01)
        with simulated_device.delays(seed, max_us=2000):
            engine, *_ = zeropage.initialize(model=model, config=config, device=device)
            for step in range(3):
                x = torch.randn(4, 32, generator=torch.Generator().manual_seed(step))
                engine.backward(engine(x.to(device)))
                engine.step()
                y = x
                optimizer.zero_grad()
                for layer in plain.layers[::2]:
                    y = layer(y).tanh()
                z = y
                for layer in plain.layers[1::2]:
                    z = layer(z).tanh()
                (y * z).mean().backward()
                optimizer.step()
            found = flat_parameters(engine.module).cpu()
            engine.destroy()
            del graph
        assert torch.allclose(found, torch.cat([p.detach().reshape(-1) for p in plain.parameters()]), atol=2e-5)
