"""`checkpointing.checkpoint` and the section "activation_checkpointing": gradients are those without it, memory is
less."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import zeropage
from zeropage import checkpointing
from zeropage.errors import ConfigError

LAYERS, WIDTH, ROWS = 6, 32, 4096


@pytest.fixture(autouse=True)
def not_configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(checkpointing, "_settings", None)
    yield


class Net(nn.Module):
    """Layers whose inputs are all that is kept of them."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout), nn.Tanh()) for _ in range(LAYERS)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = checkpointing.checkpoint(layer, x)
        return x.square().mean()


def config_of(**section: Any) -> dict[str, Any]:
    sections = {"activation_checkpointing": section} if section else {}
    return {"train_batch_size": 1, "optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 3}, **sections}


def train(model: nn.Module, device: str, **section: Any) -> tuple[list[torch.Tensor], int]:
    """(gradients of a step after another one, the device's peak in that step beyond what was there)"""
    engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=config_of(**section), device=device)
    torch.manual_seed(5)
    batch = torch.randn(ROWS, WIDTH, device=device)
    peak = 0
    for _ in range(2):
        if device != "cpu":
            torch.accelerator.synchronize()
            torch.accelerator.reset_peak_memory_stats()
            before = torch.accelerator.memory_allocated()
        loss = engine(batch)
        if device != "cpu":
            torch.accelerator.synchronize()
            peak = torch.accelerator.max_memory_allocated() - before
        engine.backward(loss)
        gradients = [p.grad.detach().cpu().clone() for p in engine.parameters()]
        engine.step()
    engine.destroy()
    return gradients, peak


def test_the_section_takes_effect():
    """Catches a section that is read and then forgotten, or that changes gradients."""
    torch.manual_seed(1)
    model = Net(dropout=0.1)
    plain, _ = train(model, "cpu")
    assert not checkpointing.is_configured()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        told, _ = train(
            model,
            "cpu",
            profile=True,
            cpu_checkpointing=True,
            synchronize_checkpoint_boundary=True,
            partition_activations=True,
        )
    assert checkpointing.is_configured()
    assert sum(event.count for event in profile.key_averages() if event.key == "checkpoint") == 2 * LAYERS
    for one, other in zip(told, plain, strict=True):
        assert torch.equal(one, other)


def test_arguments_override_the_configuration():
    """Catches arguments of configure that are ignored, and a model-parallel unit that is ignored."""
    checkpointing.configure(
        deepspeed_config=config_of(cpu_checkpointing=True, profile=True), profile=False, num_checkpoints=4
    )
    assert checkpointing._settings == checkpointing._Settings(cpu_checkpointing=True, profile=False)
    with pytest.raises(ConfigError, match="mpu_ is not available"):
        checkpointing.configure(mpu_=object())


@pytest.mark.gpu
def test_inputs_are_copied_to_the_host_and_back():
    """Catches inputs of checkpoints that stay on the device, that another stream overwrites, or that the backward reads
    before they are copied back."""
    device = torch.accelerator.current_accelerator().type
    torch.manual_seed(1)
    model = Net()
    plain, peak = train(model, device)
    told, less = train(model, device, cpu_checkpointing=True)
    for one, other in zip(told, plain, strict=True):
        assert torch.equal(one, other)
    saved = (LAYERS - 2) * ROWS * WIDTH * 4  # all but the first, which is the program's own, and one that is in use
    assert less <= peak - saved, (less, peak)


@pytest.mark.gpu
@pytest.mark.parametrize("cpu_checkpointing", [False, True])
def test_dropout_is_the_same_in_the_recomputation(cpu_checkpointing: bool):
    """Catches a recomputation without the forward's random states of a device: dropout then omits other elements, and
    gradients belong to another loss."""
    device = torch.accelerator.current_accelerator().type
    checkpointing.configure(checkpoint_in_cpu=cpu_checkpointing)
    torch.manual_seed(1)
    model = Net(dropout=0.5).to(device)
    batch = torch.randn(64, WIDTH, device=device)
    torch.manual_seed(2)
    recomputed = torch.autograd.grad(model(batch), list(model.parameters()))
    torch.manual_seed(2)
    x = batch
    for layer in model.layers:
        x = layer(x)
    plain = torch.autograd.grad(x.square().mean(), list(model.parameters()))
    for one, other in zip(recomputed, plain, strict=True):
        assert torch.equal(one.cpu(), other.cpu())


@pytest.mark.gpu
def test_two_backwards_of_a_kept_graph():
    """Catches an input that the second backward of a graph does not find."""
    device = torch.accelerator.current_accelerator().type
    checkpointing.configure(checkpoint_in_cpu=True)
    torch.manual_seed(1)
    model = Net().to(device)
    loss = model(torch.randn(64, WIDTH, device=device))
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.cpu(), other.cpu())
