"""The machine's memory rates: of the device, of the link to it, and of the host."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

ROUNDS = 5


def _best_rate(copy: Callable[[], object], synchronize: Callable[[], object], moved_bytes: int) -> float:
    """GB/s of the fastest of ROUNDS copies."""
    copy()
    best = 0.0
    for _ in range(ROUNDS):
        synchronize()
        begin = time.perf_counter()
        copy()
        synchronize()
        best = max(best, moved_bytes / (time.perf_counter() - begin))
    return round(best / 1e9, 1)


def measure(device: torch.device, size_bytes: int = 1 << 30) -> dict[str, Any]:
    """GB/s: `device_copy` and `host_copy` count bytes read and written, the others count bytes that cross the link."""
    small = device.type == "cpu"
    size_bytes = 1 << 26 if small else size_bytes
    first, second = (torch.ones(size_bytes, dtype=torch.uint8) for _ in range(2))
    figures: dict[str, Any] = {"bench": "gpu_machine", "torch": torch.__version__, "cores": torch.get_num_threads()}
    figures["host_copy"] = _best_rate(lambda: second.copy_(first), lambda: None, 2 * size_bytes)
    if small:
        return {**figures, "device": "cpu"}
    module = torch.get_device_module(device)
    figures["device"] = module.get_device_name() if hasattr(module, "get_device_name") else device.type
    source, target = (torch.empty(size_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    figures["device_copy"] = _best_rate(lambda: target.copy_(source), module.synchronize, 2 * size_bytes)
    for kind, host in (("pageable", first), ("pinned", first.pin_memory())):
        figures[f"to_device_{kind}"] = _best_rate(
            partial(source.copy_, host, non_blocking=True), module.synchronize, size_bytes
        )
        figures[f"to_host_{kind}"] = _best_rate(
            partial(host.copy_, source, non_blocking=True), module.synchronize, size_bytes
        )
    return figures
