"""`get_accelerator()`: the device of this process under the names that DeepSpeed gives its questions. torch answers them."""

import functools
import os
from typing import Any

import torch

from ..errors import UsageError


class Accelerator:
    """A GPU, or the CPU where torch sees no GPU. Methods that a CPU has nothing to say to answer with zero, or do nothing."""

    def __init__(self) -> None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self._name = "cpu" if found is None else found.type
        self._module = None if found is None else torch.get_device_module(found)

    def is_available(self) -> bool:
        return True

    def device_name(self, device_index: int | None = None) -> str:
        """"cpu", "cuda" or "cuda:1"."""
        return self._name if device_index is None or self._module is None else f"{self._name}:{device_index}"

    def device(self, device_index: int | None = None) -> Any:
        """A context in which this device is the current one."""
        return torch.device(self.device_name(device_index))

    def current_device(self) -> int:
        return 0 if self._module is None else torch.accelerator.current_device_index()

    def current_device_name(self) -> str:
        return self.device_name(self.current_device())

    def set_device(self, device_index: int) -> None:
        if self._module is not None:
            torch.accelerator.set_device_index(device_index)

    def device_count(self) -> int:
        """GPUs; on a CPU the ranks of this host."""
        if self._module is not None:
            return torch.accelerator.device_count()
        return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))

    def communication_backend_name(self) -> str:
        """The backend of torch.distributed that serves this device."""
        return "nccl" if self._name == "cuda" else torch.distributed.get_default_backend_for_device(self._name)

    def is_synchronized_device(self) -> bool:
        """Whether operators have ended when they return."""
        return self._module is None

    def synchronize(self, device_index: int | None = None) -> None:
        if self._module is not None:
            torch.accelerator.synchronize(self.current_device() if device_index is None else device_index)

    def empty_cache(self) -> None:
        if self._module is not None:
            self._module.empty_cache()

    def memory_allocated(self, device_index: int | None = None) -> int:
        return 0 if self._module is None else self._module.memory_allocated(device_index)

    def max_memory_allocated(self, device_index: int | None = None) -> int:
        return 0 if self._module is None else self._module.max_memory_allocated(device_index)

    def memory_reserved(self, device_index: int | None = None) -> int:
        return 0 if self._module is None else self._module.memory_reserved(device_index)

    def max_memory_reserved(self, device_index: int | None = None) -> int:
        return 0 if self._module is None else self._module.max_memory_reserved(device_index)

    def reset_peak_memory_stats(self, device_index: int | None = None) -> None:
        if self._module is not None:
            self._module.reset_peak_memory_stats(device_index)

    def is_bf16_supported(self) -> bool:
        return self._module is None or bool(self._module.is_bf16_supported())

    def is_fp16_supported(self) -> bool:
        return True

    def supported_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.float16, torch.bfloat16]

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_rng_state(self, device_index: int | None = None) -> torch.Tensor:
        return torch.get_rng_state() if self._module is None else self._module.get_rng_state(device_index or self.current_device())

    def set_rng_state(self, state: torch.Tensor, device_index: int | None = None) -> None:
        if self._module is None:
            torch.set_rng_state(state)
        else:
            self._module.set_rng_state(state, device_index or self.current_device())

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == self._name

    def pin_memory(self, tensor: torch.Tensor, align_bytes: int = 1) -> torch.Tensor:
        """Page-locked, where there is a GPU. `align_bytes` is there for compatibility: torch aligns to 64 bytes or more."""
        return tensor if self._module is None else tensor.pin_memory()

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.is_pinned()

    def create_op_builder(self, name: str) -> Any:
        raise UsageError(f"there is no extension {name!r} to build: nothing compiles at run time, and every kernel is in the engine")

    get_op_builder = create_op_builder


@functools.cache
def get_accelerator() -> Accelerator:
    """The one of this process."""
    return Accelerator()
