"""The learning-rate schedule of the configuration, as a scheduler object. The arithmetic and the stepping are in C++."""

import inspect
from typing import Any

from . import _C
from .errors import UsageError

LR_RANGE_TEST = "LRRangeTest"
ONE_CYCLE = "OneCycle"
WARMUP_LR = "WarmupLR"
WARMUP_DECAY_LR = "WarmupDecayLR"
WARMUP_COSINE_LR = "WarmupCosineLR"
VALID_LR_SCHEDULES = [LR_RANGE_TEST, ONE_CYCLE, WARMUP_LR, WARMUP_DECAY_LR, WARMUP_COSINE_LR]


def check_step_arguments(scheduler: Any, arguments: dict[str, Any]) -> None:
    """Before an update: whether the scheduler object can be stepped after it. None: the configuration's, or none. Raises UsageError."""
    if scheduler is None:
        if arguments:
            raise UsageError(f"engine.step(lr_kwargs={arguments!r}) is for a scheduler object given to initialize, and there is none: leave it out")
        return
    try:
        inspect.signature(scheduler.step).bind(**arguments)
    except TypeError as error:
        raise UsageError(
            f"the scheduler {type(scheduler).__name__} cannot be stepped after this update: {error}. engine.step(lr_kwargs={{...}}) passes arguments "
            'to its step(), {"metrics": loss} for ReduceLROnPlateau. To step it once per epoch, do not give it to initialize: make it of '
            "engine.optimizer and call its step() yourself"
        ) from None


class ConfiguredSchedule:
    """What `initialize` returns as scheduler when the configuration has the section "scheduler"."""

    def __init__(self, core: _C.Engine, optimizer: Any):
        self._core = core
        self.optimizer = optimizer

    @property
    def last_batch_iteration(self) -> int:
        return self._core.schedule_iteration

    def step(self, last_batch_iteration: int | None = None) -> None:
        """Does nothing without an argument: `engine.step()` advances the schedule with every applied step. With one, jumps."""
        if last_batch_iteration is not None:
            self.load_state_dict({"last_batch_iteration": last_batch_iteration})

    def get_lr(self) -> list[float]:
        """The rates of the next step, one per parameter group."""
        return self._core.scheduled_lrs()

    get_last_lr = get_lr

    def state_dict(self) -> dict[str, int]:
        return {"last_batch_iteration": self._core.schedule_iteration}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._core.schedule_iteration = state["last_batch_iteration"]
        self.optimizer.pull_hyperparameters()
