"""The accelerator that tests marked `gpu` run on: a GPU where there is one, else the simulated device
(simulated_device/README.md)."""

import os

import simulated_device
import torch

SIMULATED = not torch.cuda.is_available()
VARIABLE = "ZEROPAGE_TEST_SIMULATED"  # set: processes that tests start have the accelerator, too


class OnDevice(torch.nn.Module):
    """Moves the batch to the model's device."""

    def __init__(self, model: torch.nn.Module, device: torch.device):
        super().__init__()
        self.inner = model.to(device)
        self.device = device

    def forward(self, *batch: torch.Tensor) -> torch.Tensor:
        return self.inner(*(x.to(self.device) for x in batch))


def load() -> None:
    """Makes it torch's accelerator in this process."""
    if not SIMULATED:
        return
    simulated_device.load()
    simulated_device.set_kernels(True)


def load_if_told() -> None:
    """A process that a test starts calls this first."""
    if os.environ.get(VARIABLE):
        load()


def device(index: int = 0) -> torch.device:
    return torch.device("simulated" if SIMULATED else "cuda", index)


def check() -> None:
    """Waits for the accelerator; raises what the simulated one has found."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    simulated_device.check()
