"""DeepSpeed's estimates of memory for model states, with its rules and its layout, so that figures can be compared.

They count neither activations nor buckets, and count gradients as DeepSpeed keeps them. `zeropage plan` shows the
memory of this engine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

GIB = 2**30
HOST_HEADROOM = 1.5  # the factor by which the rules increase the memory of the host


@dataclass(frozen=True)
class Job:
    """Parameters and machines of an estimate."""

    total_params: int
    largest_layer_params: int
    num_gpus_per_node: int
    num_nodes: int
    additional_buffer_factor: float

    @property
    def num_gpus(self) -> int:
        return self.num_gpus_per_node * self.num_nodes

    def host_bytes(self, bytes_per_param: float) -> int:
        return int(self.total_params * bytes_per_param * self.additional_buffer_factor)


def count_params(model: torch.nn.Module) -> tuple[int, int]:
    """(all parameters, shared ones once; those of the largest module, without its children)."""
    total = sum({id(p): p.numel() for p in model.parameters()}.values())
    largest = max((sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules()), default=0)
    return total, largest


def show(job: Job, with_layer: bool, lines: list[tuple[int, int, str]], emit: Callable[[str], None] = print) -> None:
    """Prints the table. lines: bytes per host, bytes per GPU, options."""

    def some(number: int, what: str) -> str:
        return f"{number} {what}{'' if number == 1 else 's'}"

    layer = f", {job.largest_layer_params // 10**6}M largest layer params" if with_layer else ""
    emit("Estimated memory needed for params, optim states and gradients for a:")
    emit(f"HW: Setup with {some(job.num_nodes, 'node')}, {some(job.num_gpus_per_node, 'GPU')} per node.")
    emit(f"SW: Model with {job.total_params // 10**6}M total params{layer}.")
    emit("  per CPU  |  per GPU |   Options")
    for host_bytes, gpu_bytes, options in lines:
        emit(f"  {host_bytes / GIB:7.2f}GB | {gpu_bytes / GIB:6.2f}GB | {options}")
