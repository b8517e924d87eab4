"""Exports the engine's model as a state dict or a safetensors file, in the types of the computation."""

import os

import torch

from . import _C
from .engine_settings import EngineSettings
from .parameter_holders import engine_of

DEFAULT_NAME = "model.safetensors"


class ModelExports(EngineSettings):
    """The part of the engine that exports its model. All methods are collective."""

    def module_state_dict(self, exclude_frozen_parameters: bool = False) -> dict[str, torch.Tensor]:
        """The module's state dict with whole values, on the host of every rank. Parameters are gathered one at a
        time."""
        return self._whole_state_dict(exclude_frozen_parameters, keep=True)

    def _zero3_consolidated_16bit_state_dict(
        self, exclude_frozen_parameters: bool = False
    ) -> dict[str, torch.Tensor] | None:
        """The same, but only on rank 0; None on the others."""
        state = self._whole_state_dict(exclude_frozen_parameters, keep=self.global_rank == 0)
        return state if self.global_rank == 0 else None

    _consolidated_16bit_state_dict = _zero3_consolidated_16bit_state_dict

    def save_16bit_model(
        self, save_dir: str | os.PathLike, save_filename: str = DEFAULT_NAME, exclude_frozen_parameters: bool = False
    ) -> bool:
        """Writes parameters and buffers as one safetensors file, tied ones once; returns True. In fp32 runs the file is
        fp32.

        Parameters are gathered one at a time, so no rank ever holds the whole model. `zeropage ckpt export` writes fp32
        from a checkpoint. Raises UsageError for names that do not end in .safetensors (pickles are never written),
        CheckpointError on every rank.
        """
        path = os.path.join(os.fspath(save_dir), save_filename)
        tensors = [(name, tensor) for name, tensor in self._state(exclude_frozen_parameters).items()]
        first = {id(tensor): name for name, tensor in reversed(tensors)}
        once = [(name, tensor.detach()) for name, tensor in tensors if first[id(tensor)] == name]
        _C.save_model_file(self._core, self._communicator, path, once)
        return True

    save_fp16_model = save_16bit_model

    def _state(self, exclude_frozen_parameters: bool) -> dict[str, torch.Tensor]:
        state = self.module.state_dict(keep_vars=True)
        tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        if not exclude_frozen_parameters:
            return tensors
        return {
            name: value
            for name, value in tensors.items()
            if not isinstance(value, torch.nn.Parameter) or value.requires_grad
        }

    def _whole_state_dict(self, exclude_frozen_parameters: bool, keep: bool) -> dict[str, torch.Tensor]:
        copies: dict[int, torch.Tensor] = {}
        state = {}
        for name, tensor in self._state(exclude_frozen_parameters).items():
            if id(tensor) not in copies:
                copies[id(tensor)] = self._host_copy(tensor, keep)
            state[name] = copies[id(tensor)]
        return state

    def _host_copy(self, tensor: torch.Tensor, keep: bool) -> torch.Tensor:
        """A copy, or nothing. Every rank calls this for each parameter, because gathers over a network need all
        ranks."""
        if not isinstance(self._core, _C.Engine):  # it has ended
            return tensor.detach().to("cpu", copy=True)
        ticket = self._core.gather([tensor]) if engine_of(tensor) is self._core else None
        try:
            if not keep:
                return torch.empty(0)
            self._core.wait_for_device("the copy of a tensor to the host")
            return tensor.detach().to("cpu", copy=True)
        finally:
            if ticket is not None:
                self._core.release(ticket, -1)
