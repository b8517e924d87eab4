"""The memory of an engine's state: reports its bytes and moves it."""

from collections.abc import Iterable

import torch

from . import report
from .engine_settings import EngineSettings
from .errors import UsageError
from .runtime.zero.offload_config import OffloadDeviceEnum, OffloadStateTypeEnum


class EngineMemory(EngineSettings):
    """The part of the engine that counts and moves model state."""

    def memory_report(self) -> report.MemoryReport:
        """Counted bytes of model state of every rank, and those of the formula. Collective."""
        shards = self.optimizer.shards if self._has_optimizer else None
        stage = self.zero_optimization_stage()
        if shards is None:
            return report.gather_memory(self._core, self._communicator, stage)
        offloaded = self.zero_offload_optimizer() is not None
        device, host = shards.state.bytes_on(self.device)
        if (
            offloaded and self.device.type == "cpu"
        ):  # there is only one memory: the configuration determines what counts as offloaded
            device, host = 0, device + host
        return report.gather_memory(
            self._core, self._communicator, stage, (device, host), shards.formula_bytes(self._named), offloaded
        )

    def print_memory_table(self) -> None:
        """Prints the memory report on rank 0. Collective."""
        memory = self.memory_report()
        if self.global_rank == 0:
            print(memory.table(), end="", flush=True)

    def empty_partition_cache(self) -> None:
        """Frees cached frames and pages."""
        self._core.trim_memory()

    def offload_states(
        self,
        include: Iterable[OffloadStateTypeEnum | str] | None = None,
        device: str = "cpu",
        pin_memory: bool = True,
        non_blocking: bool = False,
    ) -> None:
        """Moves state to the host until `reload_states`, to free memory of the device: optimizer state, gradient
        buffers and parameters, or those that `include` names. Until then training and reads of parameters are errors.
        Collective, between updates.

        pin_memory: page-locked host memory, where there is a GPU. non_blocking: accepted; the state has been moved on
        return.
        """
        if device not in ("cpu", torch.device("cpu"), OffloadDeviceEnum.cpu):
            raise UsageError(f"offload_states moves state to the host: expected device 'cpu', got {device!r}")
        states = OffloadStateTypeEnum
        try:
            kinds = {states(kind) for kind in (states if include is None else include)}
        except ValueError as error:
            raise UsageError(
                f"offload_states: {error}; expected some of {', '.join(kind.value for kind in states)}"
            ) from None
        self._core.offload_states(
            optimizer=bool(kinds & {states.optim_states, states.hp_params}),
            gradients=bool(kinds & {states.lp_grads, states.contiguous_grad_buffer}),
            parameters=states.lp_params in kinds,
            pin_memory=pin_memory,
        )

    def reload_states(self, non_blocking: bool = False) -> None:
        """Ends `offload_states`. Collective."""
        self._core.reload_states()
