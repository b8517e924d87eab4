"""DeepSpeed's memory estimates for stage 3."""

import torch

from .estimates import HOST_HEADROOM, Job, count_params, show


def estimate_zero3_model_states_mem_needs(
    total_params: int,
    largest_layer_params: int,
    num_gpus_per_node: int = 1,
    num_nodes: int = 1,
    cpu_offload: bool = True,
    cpu_offload_params: bool = True,
    zero_init: bool = True,
    additional_buffer_factor: float = HOST_HEADROOM,
) -> tuple[int, int, int]:
    """(bytes on a host, bytes on a GPU, bytes of the largest layer)."""
    job = Job(total_params, largest_layer_params, num_gpus_per_node, num_nodes, additional_buffer_factor)
    layer_bytes = 4 * largest_layer_params
    whole_model_per_rank = 0 if zero_init else 4 * num_gpus_per_node  # bytes per parameter while the model is made
    if not cpu_offload:
        made = largest_layer_params if zero_init else total_params
        host_bytes = int(made * 4 * num_gpus_per_node * additional_buffer_factor)
        return host_bytes, layer_bytes + int(18 * total_params / job.num_gpus), layer_bytes
    kept = 18 if cpu_offload_params else 16
    gpu_bytes = layer_bytes + (0 if cpu_offload_params else int(2 * total_params / job.num_gpus))
    return job.host_bytes(max(whole_model_per_rank, kept / num_nodes)), gpu_bytes, layer_bytes


def estimate_zero3_model_states_mem_needs_all_live(
    model: torch.nn.Module,
    num_gpus_per_node: int = 1,
    num_nodes: int = 1,
    additional_buffer_factor: float = HOST_HEADROOM,
) -> None:
    """Prints the estimates for a model, for each kind of offload, with and without zero.Init."""
    estimate_zero3_model_states_mem_needs_all_cold(
        *count_params(model), num_gpus_per_node, num_nodes, additional_buffer_factor
    )


def estimate_zero3_model_states_mem_needs_all_cold(
    total_params: int,
    largest_layer_params: int,
    num_gpus_per_node: int = 1,
    num_nodes: int = 1,
    additional_buffer_factor: float = HOST_HEADROOM,
) -> None:
    """Prints the estimates for numbers of parameters, for each kind of offload, with and without zero.Init."""
    job = Job(total_params, largest_layer_params, num_gpus_per_node, num_nodes, additional_buffer_factor)
    lines = []
    for optimizer, parameters in (("cpu", "cpu"), ("cpu", "none"), ("none", "none")):
        for zero_init in (True, False):
            host_bytes, gpu_bytes, _ = estimate_zero3_model_states_mem_needs(
                total_params,
                largest_layer_params,
                num_gpus_per_node,
                num_nodes,
                optimizer == "cpu",
                parameters == "cpu",
                zero_init,
                additional_buffer_factor,
            )
            options = f"offload_param={parameters:4}, offload_optimizer={optimizer:4}, zero_init={int(zero_init)}"
            lines.append((host_bytes, gpu_bytes, options))
    show(job, True, lines)
