"""`get_accelerator()`: queries of this process's device with DeepSpeed's names. torch answers them.

If torch finds no GPU, the device is the CPU: operators have ended when they return, memory is the resident memory of
the process, and streams and events, which a CPU does not have, do nothing.
"""

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any

import torch

from ..errors import UsageError
from ..report import process_bytes
from . import host_memory, op_builder

_TENSORS = {
    "BFloat16Tensor": torch.bfloat16,
    "ByteTensor": torch.uint8,
    "DoubleTensor": torch.float64,
    "FloatTensor": torch.float32,
    "HalfTensor": torch.float16,
    "IntTensor": torch.int32,
    "LongTensor": torch.int64,
}


class Accelerator:
    """A GPU, or the CPU if torch finds no GPU."""

    def __init__(self) -> None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self._name = "cpu" if found is None else found.type
        self._module = torch.get_device_module("cpu" if found is None else found)
        self._is_cpu = found is None
        self._compile_backend = "inductor"
        self._communication_backend_name = (
            "nccl" if self._name == "cuda" else torch.distributed.get_default_backend_for_device(self._name)
        )

    # -- devices

    def is_available(self) -> bool:
        return True

    def device_name(self, device_index: int | None = None) -> str:
        """ "cpu", "cuda" or "cuda:1"."""
        return self._name if device_index is None or self._is_cpu else f"{self._name}:{device_index}"

    def device(self, device_index: int | None = None) -> Any:
        """A context in which this device is the current one."""
        return torch.device(self.device_name(device_index))

    def current_device(self) -> int:
        return 0 if self._is_cpu else torch.accelerator.current_device_index()

    def current_device_name(self) -> str:
        return self.device_name(self.current_device())

    def set_device(self, device_index: int) -> None:
        if not self._is_cpu:
            torch.accelerator.set_device_index(device_index)

    def device_count(self) -> int:
        """Number of GPUs; on a CPU the ranks of this host from the launcher, or the cores that this process may use."""
        if not self._is_cpu:
            return torch.accelerator.device_count()
        ranks = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
        return int(ranks) if ranks else len(os.sched_getaffinity(0))

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == self._name

    def communication_backend_name(self) -> str:
        """The backend of torch.distributed for this device."""
        return self._communication_backend_name

    def visible_devices_envs(self) -> list[str]:
        """The environment variables that select the devices of a process."""
        return ["CUDA_VISIBLE_DEVICES"]

    def set_visible_devices_envs(self, current_env: dict[str, str], local_accelerator_ids: list[int]) -> None:
        for name in self.visible_devices_envs():
            current_env[name] = ",".join(map(str, local_accelerator_ids))

    def export_envs(self) -> list[str]:
        """Prefixes of the variables that the launcher passes to other hosts."""
        return [] if self._is_cpu else ["NCCL"]

    # -- streams, events, ranges

    def is_synchronized_device(self) -> bool:
        """Whether operators have ended when they return."""
        return self._is_cpu

    use_host_timers = resolves_data_dependency = handles_memory_backpressure = is_synchronized_device

    def synchronize(self, device_index: int | None = None) -> None:
        if not self._is_cpu:
            torch.accelerator.synchronize(self.current_device() if device_index is None else device_index)

    @property
    def Stream(self) -> Any:  # noqa: N802 (DeepSpeed's name)
        """The class of streams."""
        return self._module.Stream

    @property
    def Event(self) -> Any:  # noqa: N802
        """The class of events; on a CPU a Python clock with the same methods."""
        return host_memory.HostEvent if self._is_cpu else self._module.Event

    def stream(self, stream: Any) -> Any:
        """A context whose operators run on this stream."""
        return contextlib.nullcontext() if stream is None else self._module.stream(stream)

    def current_stream(self, device_index: int | None = None) -> Any:
        return self._module.current_stream(device_index or self.current_device())

    def default_stream(self, device_index: int | None = None) -> Any:
        return self.current_stream() if self._is_cpu else self._module.default_stream(device_index)

    def range_push(self, msg: str) -> None:
        """Begins a range in traces of the device; a CPU has no such traces."""
        if self._name == "cuda":
            torch.cuda.nvtx.range_push(msg)

    def range_pop(self) -> None:
        if self._name == "cuda":
            torch.cuda.nvtx.range_pop()

    def lazy_call(self, callback: Callable[[], Any]) -> None:
        """Calls it at once: the device is ready when this object exists."""
        callback()

    # -- graphs of operators: CUDA only

    def create_graph(self) -> Any:
        return self._cuda("graphs").CUDAGraph()

    def capture_to_graph(self, graph: Any, pool: Any = None, stream: Any = None) -> Any:
        return self._cuda("graphs").graph(graph, pool, stream)

    def replay_graph(self, graph: Any) -> None:
        graph.replay()

    def _cuda(self, what: str) -> Any:
        if self._name != "cuda":
            raise UsageError(f"{what} of operators need CUDA; this device is {self._name}")
        return torch.cuda

    # -- memory

    def empty_cache(self) -> None:
        if not self._is_cpu:
            self._module.empty_cache()

    def memory_stats(self, device_index: int | None = None) -> dict[str, Any]:
        """torch's counters by name; on a CPU only allocated_bytes.all.current and .peak."""
        if not self._is_cpu:
            return self._module.memory_stats(device_index)
        return {
            "allocated_bytes.all.current": process_bytes(),
            "allocated_bytes.all.peak": host_memory.peak_bytes(),
        }

    def memory_allocated(self, device_index: int | None = None) -> int:
        """Bytes of existing tensors; on a CPU the resident memory of the process."""
        return process_bytes() if self._is_cpu else self._module.memory_allocated(device_index)

    def max_memory_allocated(self, device_index: int | None = None) -> int:
        return host_memory.peak_bytes() if self._is_cpu else self._module.max_memory_allocated(device_index)

    def memory_reserved(self, device_index: int | None = None) -> int:
        """Bytes that torch's allocator holds; on a CPU as memory_allocated."""
        return process_bytes() if self._is_cpu else self._module.memory_reserved(device_index)

    def max_memory_reserved(self, device_index: int | None = None) -> int:
        return host_memory.peak_bytes() if self._is_cpu else self._module.max_memory_reserved(device_index)

    memory_cached, max_memory_cached = memory_reserved, max_memory_reserved  # older names

    def reset_peak_memory_stats(self, device_index: int | None = None) -> None:
        """Sets the peaks to the current values."""
        if self._is_cpu:
            host_memory.reset_peak()
        else:
            self._module.reset_peak_memory_stats(device_index)

    reset_max_memory_allocated = reset_max_memory_cached = reset_peak_memory_stats

    def total_memory(self, device_index: int | None = None) -> int:
        return host_memory.total_bytes() if self._is_cpu else self._module.mem_get_info(device_index)[1]

    def available_memory(self, device_index: int | None = None) -> int:
        return host_memory.available_bytes() if self._is_cpu else self._module.mem_get_info(device_index)[0]

    def pin_memory(self, tensor: torch.Tensor, align_bytes: int = 1, make_copy: bool = True) -> torch.Tensor:
        """Page-locked memory if there is a GPU. `align_bytes`, `make_copy`: accepted for compatibility; torch aligns to
        64 bytes or more, and copies."""
        return tensor if self._is_cpu else tensor.pin_memory()

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.is_pinned()

    # -- random numbers

    def random(self) -> Any:
        return torch.random

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def initial_seed(self) -> int:
        return torch.initial_seed() if self._is_cpu else self._module.initial_seed()

    def default_generator(self, device_index: int) -> torch.Generator:
        return torch.default_generator if self._is_cpu else self._module.default_generators[device_index]

    def get_rng_state(self, device_index: int | None = None) -> torch.Tensor:
        return (
            torch.get_rng_state() if self._is_cpu else self._module.get_rng_state(device_index or self.current_device())
        )

    def set_rng_state(self, new_state: torch.Tensor, device_index: int | None = None) -> None:
        if self._is_cpu:
            torch.set_rng_state(new_state)
        else:
            self._module.set_rng_state(new_state, device_index or self.current_device())

    # -- types

    def is_bf16_supported(self) -> bool:
        return self._is_cpu or bool(self._module.is_bf16_supported())

    def is_fp16_supported(self) -> bool:
        return True

    def supported_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.float16, torch.bfloat16]

    def is_triton_supported(self) -> bool:
        return not self._is_cpu and torch.utils._triton.has_triton()

    def amp(self) -> Any:
        """torch's module of autocast for this device."""
        return torch.amp

    def __getattr__(self, name: str) -> Any:
        """FloatTensor and so on: makes a tensor of this type on this device, from data or from sizes."""
        if name not in _TENSORS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return functools.partial(_make_tensor, _TENSORS[name], self._name)

    # -- compilers, extensions

    def get_compile_backend(self) -> str:
        """The default backend of torch.compile."""
        return self._compile_backend

    def set_compile_backend(self, backend: str) -> None:
        """Raises UsageError for one that torch does not list."""
        known = torch._dynamo.list_backends(exclude_tags=())
        if backend not in known:
            raise UsageError(f"torch.compile has no backend {backend!r}; expected one of {', '.join(known)}")
        self._compile_backend = backend

    def op_builder_dir(self) -> str:
        return "deepspeed.ops.op_builder"

    def get_op_builder(self, class_name: str) -> type[op_builder.OpBuilder]:
        """The builder's class. It reports whether the engine has these kernels, and builds nothing."""
        return getattr(op_builder, class_name)

    def create_op_builder(self, class_name: str) -> op_builder.OpBuilder:
        return self.get_op_builder(class_name)()


DeepSpeedAccelerator = Accelerator


def _make_tensor(dtype: torch.dtype, device: str, *data: Any) -> torch.Tensor:
    if all(isinstance(size, int) for size in data):
        return torch.empty(data or (0,), dtype=dtype, device=device)
    return torch.as_tensor(data[0]).to(device, dtype)


@functools.cache
def get_accelerator() -> Accelerator:
    """The accelerator of this process."""
    return Accelerator()


def is_current_accelerator_supported() -> bool:
    return True


def set_accelerator(accel_obj: Any) -> None:
    """Raises UsageError: torch determines the device."""
    raise UsageError(
        "set_accelerator: torch determines the device; ZEROPAGE_DEVICE=cpu in the environment chooses the CPU"
    )
