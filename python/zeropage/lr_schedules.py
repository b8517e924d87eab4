"""The learning-rate schedule of the configuration, as a scheduler object. The arithmetic and the stepping are in C++."""

from typing import Any

from . import _C

LR_RANGE_TEST = "LRRangeTest"
ONE_CYCLE = "OneCycle"
WARMUP_LR = "WarmupLR"
WARMUP_DECAY_LR = "WarmupDecayLR"
WARMUP_COSINE_LR = "WarmupCosineLR"
VALID_LR_SCHEDULES = [LR_RANGE_TEST, ONE_CYCLE, WARMUP_LR, WARMUP_DECAY_LR, WARMUP_COSINE_LR]


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
