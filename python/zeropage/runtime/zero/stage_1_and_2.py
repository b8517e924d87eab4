"""DeepSpeed's memory estimates for stage 2."""

import torch

from .estimates import HOST_HEADROOM, Job, count_params, show


def estimate_zero2_model_states_mem_needs(
    total_params: int,
    num_gpus_per_node: int = 1,
    num_nodes: int = 1,
    cpu_offload: bool = True,
    additional_buffer_factor: float = HOST_HEADROOM,
) -> tuple[int, int]:
    """(bytes on a host, bytes on a GPU)."""
    job = Job(total_params, 0, num_gpus_per_node, num_nodes, additional_buffer_factor)
    if cpu_offload:
        return job.host_bytes(max(4 * job.num_gpus, 16)), 2 * total_params
    return job.host_bytes(4 * num_gpus_per_node), 4 * total_params + int(16 * total_params / job.num_gpus)


def estimate_zero2_model_states_mem_needs_all_live(
    model: torch.nn.Module,
    num_gpus_per_node: int = 1,
    num_nodes: int = 1,
    additional_buffer_factor: float = HOST_HEADROOM,
) -> None:
    """Prints the estimates for a model, with and without offload."""
    estimate_zero2_model_states_mem_needs_all_cold(
        count_params(model)[0], num_gpus_per_node, num_nodes, additional_buffer_factor
    )


def estimate_zero2_model_states_mem_needs_all_cold(
    total_params: int, num_gpus_per_node: int = 1, num_nodes: int = 1, additional_buffer_factor: float = HOST_HEADROOM
) -> None:
    """Prints the estimates for a number of parameters, with and without offload."""
    job = Job(total_params, 0, num_gpus_per_node, num_nodes, additional_buffer_factor)
    lines = []
    for offload in (True, False):
        needs = estimate_zero2_model_states_mem_needs(
            total_params, num_gpus_per_node, num_nodes, offload, additional_buffer_factor
        )
        lines.append((*needs, f"offload_optimizer={'cpu' if offload else 'none'}"))
    show(job, False, lines)
