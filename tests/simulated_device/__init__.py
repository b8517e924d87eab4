"""A simulated accelerator: torch device "simulated", two of them. See README.md in this folder.

`load()` makes it torch's accelerator for the rest of the process. `visible` decides whether torch finds it; tests that
are not for accelerators hide it. `check()` raises the faults found since the last call: races, and memory that was
freed too early.
"""

import atexit
import contextlib
import datetime
import importlib
import os
import types
from collections.abc import Iterator
from typing import Any

import torch

__all__ = [
    "check",
    "count",
    "delays",
    "devices_with_context",
    "from_blob",
    "held",
    "is_loaded",
    "load",
    "set_kernels",
    "take_starts",
    "visible",
]

NAME = "simulated"
_loaded: Any = None  # the C++ module _device, which gives mypy no types


class SimulatedDeviceError(AssertionError):
    """The program has used the device in a way that would sooner or later fail on a GPU."""


def is_loaded() -> bool:
    return _loaded is not None


def load() -> None:
    """Makes it torch's accelerator. ZEROPAGE_SIMULATED_DELAYS=SEED,MAX_US delays tasks at random."""
    global _loaded
    if is_loaded():
        return
    module = _loaded = importlib.import_module("._device", __name__)
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _torch_module())
    module.register()
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    _register_backend()
    atexit.register(module.drain)
    seed, _, max_us = os.environ.get("ZEROPAGE_SIMULATED_DELAYS", "0,0").partition(",")
    module.set_delays(int(seed), int(max_us))


def set_kernels(used: bool) -> None:
    """Whether engines find their own kernels for the device, as in a CUDA build; otherwise they use torch's
    operators."""
    from zeropage import _C

    _C.set_device_kernels(_loaded.device_type(), _loaded.kernels() if used else None)


def check() -> None:
    """Raises SimulatedDeviceError with all that was found."""
    if is_loaded() and (faults := _loaded.take_faults()):
        raise SimulatedDeviceError(f"the simulated device found {len(faults)} fault(s):\n" + "\n".join(faults))


@contextlib.contextmanager
def visible(value: bool) -> Iterator[None]:
    """Whether torch finds the device, within the block; afterwards it does not."""
    if is_loaded():
        _loaded.set_visible(value)
    try:
        yield
    finally:
        if is_loaded():
            _loaded.set_visible(False)


@contextlib.contextmanager
def delays(seed: int, max_us: int = 2000) -> Iterator[None]:
    """Delays one task in eight by up to `max_us` within the block."""
    _loaded.set_delays(seed, max_us)
    try:
        yield
    finally:
        _loaded.set_delays(0, 0)


@contextlib.contextmanager
def count() -> Iterator[dict[str, int]]:
    """Counts events within the block; the dict is filled at its end: tasks, bytes_read and bytes_written of device
    memory, waits of the host for streams, events and devices, fetches (copies to the host, values) and uploads that the
    host waited for, waits that polled (the host asked until something was done), and update_launches of the engine's
    kernels that have run."""
    counted: dict[str, int] = {}
    before = _loaded.counters()
    yield counted
    torch.accelerator.current_stream()
    counted.update({name: value - before[name] for name, value in _loaded.counters().items()})


@contextlib.contextmanager
def held(limit_s: float = 15) -> Iterator[None]:
    """Gives the current stream an operation that does not end before the block does. It ends after `limit_s`, too, so
    that a test fails, and does not hang, where the host waits in the device's library."""
    _loaded.hold(int(1000 * limit_s))
    try:
        yield
    finally:
        _loaded.let_go()


def devices_with_context() -> list[int]:
    """Devices of which this process would hold memory if they were GPUs: see current.h."""
    return _loaded.devices_with_context()


def from_blob(address: int, numel: int) -> torch.Tensor:
    """at::from_blob for memory of the device, which asks for the address's device, as it does for CUDA."""
    return _loaded.from_blob(address, numel)


def take_starts() -> list[str]:
    """The collectives that this process has started since the last call, in order: "backend 2: allgather of 64 bytes".
    Backends are numbered as they were made."""
    return _loaded.take_starts()


def _register_backend() -> None:
    """Registers the backend of torch.distributed for tensors on the device. ZEROPAGE_SIMULATED_GLOO: wait() blocks the
    host, like Gloo's."""
    import torch.distributed as dist

    def create(store: dist.Store, rank: int, size: int, timeout: datetime.timedelta) -> dist.Backend:
        gloo = dist.ProcessGroupGloo(store, rank, size, timeout=timeout)
        return _loaded.make_backend(gloo, bool(os.environ.get("ZEROPAGE_SIMULATED_GLOO")))

    dist.Backend.register_backend(NAME, create, devices=[NAME])


def _torch_module() -> types.ModuleType:
    """The module that torch expects as torch.simulated."""
    module: Any = types.ModuleType(f"torch.{NAME}")
    module.is_available = _loaded.is_visible
    module.is_initialized = lambda: True
    module._initialized = True  # else torch's checkpoint does not keep the random states of the device
    module.device = torch.accelerator.device_index
    module._is_in_bad_fork = lambda: False
    module.device_count = lambda: _loaded.device_count() if _loaded.is_visible() else 0
    module.current_device = _loaded.current_device
    module.set_device = torch.accelerator.set_device_index
    module.current_stream = lambda device=None: torch.accelerator.current_stream(device)
    module.synchronize = lambda device=None: torch.accelerator.synchronize(device)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]

    def generator(device: "int | str | torch.device" = NAME) -> torch.Generator:
        index = torch.device(NAME, device) if isinstance(device, int) else torch.device(device)
        return _loaded.default_generator(index.index if index.index is not None else module.current_device())

    def manual_seed_all(seed: int) -> None:
        for index in range(_loaded.device_count()):
            _loaded.default_generator(index).manual_seed(seed)

    module.get_rng_state = lambda device=NAME: generator(device).get_state()
    module.set_rng_state = lambda state, device=NAME: generator(device).set_state(state)
    module.manual_seed_all = manual_seed_all
    module.manual_seed = lambda seed: generator().manual_seed(seed)
    return module
