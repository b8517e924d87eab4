"""Process groups with the names of `deepspeed.utils.groups`. All ranks are data-parallel; there is one rank in every
other group."""

import torch.distributed as dist

from ..distributed import current_world


def _world_group() -> dist.ProcessGroup | None:
    return dist.group.WORLD if dist.is_initialized() else None


_get_data_parallel_group = _get_sequence_data_parallel_group = _world_group
_clone_world_group = _world_group


def _get_data_parallel_world_size() -> int:
    return current_world().size


def _get_data_parallel_rank() -> int:
    return current_world().rank


_get_sequence_data_parallel_world_size = _get_data_parallel_world_size
_get_sequence_data_parallel_rank = _get_data_parallel_rank


def _get_sequence_parallel_group() -> None:
    """None: no ranks share a sequence."""
    return None


_get_model_parallel_group = _get_tensor_model_parallel_group = _get_sequence_parallel_group


def _get_sequence_parallel_world_size() -> int:
    return 1


def _get_sequence_parallel_rank() -> int:
    return 0


_get_model_parallel_world_size = get_tensor_model_parallel_world_size = _get_sequence_parallel_world_size
bwc_tensor_model_parallel_world_size = _get_sequence_parallel_world_size
