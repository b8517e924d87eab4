"""What the parts of ZeropageEngine use of one another, for readers and for the type checker. The engine is one object;
each of its base classes implements one subject, and may use what is declared here. Nothing here exists at run time."""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from . import _C
    from .distributed import Communicators, World


class EngineParts:
    """Declarations only."""

    _config: "_C.Config"
    _world: "World"
    _core: "_C.Engine"
    _communicator: "_C.Communicator"
    _communicators: "Communicators"
    _named: list[tuple[str, torch.Tensor, int]]
    _has_optimizer: bool
    _client_scheduler: bool
    module: torch.nn.Module
    device: torch.device
    optimizer: Any  # ZeropageOptimizer; without one at stage 3 ParameterOffload; else None
    lr_scheduler: Any
    training_dataloader: Any

    if TYPE_CHECKING:  # what EngineSettings implements

        @property
        def config(self) -> dict[str, Any]: ...
        @property
        def dp_world_size(self) -> int: ...
        @property
        def data_parallel_group(self) -> Any: ...
        @property
        def global_rank(self) -> int: ...
        def dynamic_loss_scale(self) -> bool: ...
        def prescale_gradients(self) -> bool: ...
        def steps_per_print(self) -> int | None: ...
        def train_micro_batch_size_per_gpu(self) -> int: ...
        def zero_offload_optimizer(self) -> dict[str, Any] | None: ...
        def zero_offload_param(self) -> dict[str, Any] | None: ...
        def zero_optimization_stage(self) -> int: ...
