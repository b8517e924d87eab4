"""Parameters without elements, and shards without elements, on a device: its pointers are null, or one past the end of
their memory. Compared with the same on the CPU."""

import json
from pathlib import Path
from typing import Any

import accelerator
import pytest
import simulated_device
import torch
from processes import run_processes
from torch import nn
from training import config_of, flat_parameters

import zeropage
from zeropage import distributed

pytestmark = pytest.mark.simulated

STEPS = 2


class Net(nn.Module):
    """Has parameters of no element, of one (so that some ranks have none of it), and of some, in pages of their own and
    in common ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(0, 4))
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.layer = nn.Linear(4, 4)
        self.between = nn.Parameter(torch.zeros(3, 0))
        self.frozen = nn.Parameter(torch.zeros(0), requires_grad=False)
        self.one = nn.Parameter(torch.ones(1))
        self.last = nn.Parameter(torch.zeros(0, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, 4] -> a scalar."""
        h = self.layer(torch.cat([x, self.first, self.last])) * self.scalar * self.one
        return h.square().mean() + self.between.sum() + self.frozen.sum()


def make_engine(stage: int, device: torch.device, offload: bool, page_numel: int, precision: str) -> Any:
    zero: dict[str, Any] = {"offload_optimizer": {"device": "cpu"}} if offload else {}
    if offload and stage == 3:
        zero["offload_param"] = {"device": "cpu"}
    own = {"page_numel": page_numel, "offloaded_update": "host"} if offload else {"page_numel": page_numel}
    sections: dict[str, Any] = {"zero_optimization": zero, "zeropage": own}
    if precision != "fp32":
        sections[precision] = {"enabled": True}
    torch.manual_seed(0)
    engine, *_ = zeropage.initialize(model=Net(), config=config_of(stage, **sections), device=device)
    return engine


def train(engine: Any, steps: int) -> None:
    world = distributed.current_world()
    for step in range(steps):
        x = torch.randn(4, 4, generator=torch.Generator().manual_seed(world.size * step + world.rank))
        engine.backward(engine(x.to(engine.device, engine.module.scalar.dtype)).float())
        engine.step()


def train_and_resume(engine: Any, again: Any, folder: Path) -> torch.Tensor:
    """Trains, writes through a scope, saves, and continues with `again`; its final parameters."""
    train(engine, STEPS)
    parameters = list(engine.module.parameters())
    with zeropage.zero.GatheredParameters(parameters, modifier_rank=0), torch.no_grad():
        for parameter in parameters:
            assert parameter.shape in [(0, 4), (), (4, 4), (4,), (3, 0), (0,), (1,)]
            if distributed.current_world().rank == 0:
                parameter.mul_(1.5)
    engine.save_checkpoint(folder)
    engine.destroy()
    again.load_checkpoint(folder)
    train(again, STEPS)
    final = flat_parameters(again.module).cpu()
    again.destroy()
    return final


def train_everywhere(device: str, folder: str) -> dict[str, torch.Tensor]:
    world = distributed.current_world()
    place = accelerator.device(world.rank) if device == "accelerator" else torch.device("cpu")
    finals = {}
    with simulated_device.visible(device == "accelerator"):
        for stage in range(4):
            for offload in (False, True):
                for page_numel, precision in ((1, "fp32"), (1000, "bf16")):
                    name = f"stage {stage}, offload {offload}, {precision}"
                    first, again = (make_engine(stage, place, offload, page_numel, precision) for _ in range(2))
                    finals[name] = train_and_resume(first, again, Path(folder) / name.replace(" ", "_"))
    return finals


@pytest.mark.parametrize("world", [1, 2])
def test_empty_parameters_and_shards(world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Catches views of a null or past-the-end pointer of a device without its name, and kernels, copies and collectives
    of no bytes."""

    def run(device: str) -> list[dict[str, torch.Tensor]]:
        folder = tmp_path / device
        folder.mkdir()
        arguments = json.dumps({"device": device, "folder": str(folder)})
        return run_processes(world, "test_device_empty_parameters", "train_everywhere", arguments, tmp_path, 120)

    found = run("accelerator")
    monkeypatch.setenv("ZEROPAGE_DEVICE", "cpu")
    expected = run("cpu")
    for rank in range(world):
        for name, values in expected[0].items():
            assert torch.allclose(found[rank][name], values, atol=1e-5), name
