"""Learning-rate schedules as scheduler objects: the configured one, and those that programs make. C++ computes the
rates."""

import inspect
import json
from typing import Any

import torch

from . import _C
from .errors import ConfigError, UsageError

LR_RANGE_TEST = "LRRangeTest"
ONE_CYCLE = "OneCycle"
WARMUP_LR = "WarmupLR"
WARMUP_DECAY_LR = "WarmupDecayLR"
WARMUP_COSINE_LR = "WarmupCosineLR"
VALID_LR_SCHEDULES = [LR_RANGE_TEST, ONE_CYCLE, WARMUP_LR, WARMUP_DECAY_LR, WARMUP_COSINE_LR]


def check_step_arguments(scheduler: Any, arguments: dict[str, Any]) -> None:
    """Checks before an update that the scheduler object can be stepped after it. None: the configured schedule, or no
    schedule. Raises UsageError."""
    if scheduler is None:
        if arguments:
            raise UsageError(
                f"engine.step(lr_kwargs={arguments!r}) is for a scheduler object given to initialize, and there is none: leave it out"
            )
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
    """The scheduler that `initialize` returns when the configuration has the section "scheduler"."""

    def __init__(self, core: _C.Engine, optimizer: Any):
        self._core = core
        self.optimizer = optimizer

    @property
    def last_batch_iteration(self) -> int:
        return self._core.schedule_iteration

    def step(self, last_batch_iteration: int | None = None) -> None:
        """Does nothing without an argument: `engine.step()` advances the schedule with every applied step. With an
        argument it jumps to that step."""
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


class _Schedule(torch.optim.lr_scheduler.LRScheduler):
    """Base of the schedules that programs make and give to `initialize`, or step themselves with an optimizer of
    torch's.

    optimizer: its groups get the rates. Parameters have the names, defaults and ranges of the configuration's section
    "scheduler"; an invalid one is a ConfigError. A schedule sets the rates of the first step when it is made.
    """

    def __init__(self, optimizer: Any, parameters: dict[str, Any]):
        self.optimizer = optimizer
        given = {
            name: value
            for name, value in parameters.items()
            if name not in ("self", "optimizer", "__class__") and value is not None
        }
        per_group = {name: list(value) for name, value in given.items() if isinstance(value, list | tuple)}
        shared = {name: value for name, value in given.items() if name not in per_group}
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        for name, values in per_group.items():
            if len(values) != len(rates):
                raise ConfigError(
                    f"{name} has {len(values)} values for {len(rates)} parameter groups; expected one, or one per group"
                )
        self._schedules = [
            self._make({**shared, **{name: values[group] for name, values in per_group.items()}}, rate)
            for group, rate in enumerate(rates)
        ]
        self._set()

    def _make(self, parameters: dict[str, Any], rate: float) -> "_C.LrSchedule":
        section = {"scheduler": {"type": type(self).__name__, "params": parameters}}
        return _C.LrSchedule(_C.Config.from_json(json.dumps(section), 0, type(self).__name__), [rate])

    @property
    def last_batch_iteration(self) -> int:
        """The index of the last finished step; -1 before the first."""
        return self._schedules[0].last_batch_iteration

    def step(self, last_batch_iteration: int | None = None) -> None:
        """Advances to the next step, or to the one after `last_batch_iteration`, and sets the rates."""
        for schedule in self._schedules:
            schedule.last_batch_iteration = (
                schedule.last_batch_iteration + 1 if last_batch_iteration is None else last_batch_iteration
            )
        self._set()

    def _set(self) -> None:
        for group, schedule in zip(self.optimizer.param_groups, self._schedules, strict=True):
            group["lr"] = schedule.rates[0]
            momenta = schedule.momenta
            if momenta is not None and "betas" in group:
                group["betas"] = (momenta[0], *group["betas"][1:])
            elif momenta is not None and "momentum" in group:
                group["momentum"] = momenta[0]

    def get_lr(self) -> list[float]:
        """The rates of the next step, one per parameter group."""
        return [schedule.rates[0] for schedule in self._schedules]

    get_last_lr = get_lr

    def state_dict(self) -> dict[str, int]:
        return {"last_batch_iteration": self.last_batch_iteration}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.step(state_dict["last_batch_iteration"])


class LRRangeTest(_Schedule):
    """Rates that grow from lr_range_test_min_lr, to find the largest that still trains."""

    def __init__(
        self,
        optimizer: Any,
        lr_range_test_min_lr: float = 1e-3,
        lr_range_test_step_size: int = 2000,
        lr_range_test_step_rate: float = 1.0,
        lr_range_test_staircase: bool = False,
        last_batch_iteration: int = -1,
    ):
        super().__init__(optimizer, locals())


class OneCycle(_Schedule):
    """The rate rises from cycle_min_lr to cycle_max_lr, falls again, then decays; beta1 or the momentum changes in the
    opposite direction."""

    def __init__(
        self,
        optimizer: Any,
        cycle_min_lr: float,
        cycle_max_lr: float,
        decay_lr_rate: float = 0.0,
        cycle_first_step_size: int = 2000,
        cycle_second_step_size: int | None = None,
        cycle_first_stair_count: int = 0,
        cycle_second_stair_count: int | None = None,
        decay_step_size: int = 0,
        cycle_momentum: bool = True,
        cycle_min_mom: float = 0.8,
        cycle_max_mom: float = 0.9,
        decay_mom_rate: float = 0.0,
        last_batch_iteration: int = -1,
    ):
        super().__init__(optimizer, locals())


class WarmupLR(_Schedule):
    """From warmup_min_lr to warmup_max_lr (None: each group's own rate), then constant."""

    def __init__(
        self,
        optimizer: Any,
        warmup_min_lr: float | list[float] = 0.0,
        warmup_max_lr: float | list[float] | None = 0.001,
        warmup_num_steps: int = 1000,
        warmup_type: str = "log",
        last_batch_iteration: int = -1,
    ):
        super().__init__(optimizer, locals())


class WarmupDecayLR(_Schedule):
    """As WarmupLR, then down to 0 at total_num_steps."""

    def __init__(
        self,
        optimizer: Any,
        total_num_steps: int,
        warmup_min_lr: float | list[float] = 0.0,
        warmup_max_lr: float | list[float] | None = 0.001,
        warmup_num_steps: int = 1000,
        warmup_type: str = "log",
        last_batch_iteration: int = -1,
    ):
        super().__init__(optimizer, locals())


class WarmupCosineLR(_Schedule):
    """From warmup_min_ratio to 1 times each group's own rate, then down along a cosine to cos_min_ratio at
    total_num_steps."""

    def __init__(
        self,
        optimizer: Any,
        total_num_steps: int,
        warmup_min_ratio: float = 0.0,
        warmup_num_steps: int = 1000,
        cos_min_ratio: float = 0.0001,
        warmup_type: str = "log",
        last_batch_iteration: int = -1,
    ):
        super().__init__(optimizer, locals())
