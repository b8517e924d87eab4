"""`deepspeed.monitor`: writers of metrics for programs that make them themselves. An engine makes its writers from the
configuration (`engine.monitor`)."""

import json
from types import SimpleNamespace
from typing import Any

from ..distributed import current_world
from ..initialize import parse_config
from ..monitor import Monitor

_SECTIONS = ("tensorboard", "csv_monitor", "wandb")


def get_monitor_config(param_dict: dict[str, Any]) -> SimpleNamespace:
    """The sections about metrics of a configuration as objects, with the effective values. Raises ConfigError."""
    in_force = json.loads(parse_config(param_dict, world_size=0).effective_json)
    sections = {name: SimpleNamespace(**in_force[name]) for name in _SECTIONS}
    return SimpleNamespace(**sections, enabled=any(section.enabled for section in sections.values()))


class MonitorMaster(Monitor):
    """All enabled writers of `get_monitor_config`; none on ranks other than 0."""

    def __init__(self, monitor_config: SimpleNamespace):
        super().__init__({name: vars(getattr(monitor_config, name)) for name in _SECTIONS}, current_world().rank)


class _One(Monitor):
    """The writer of one section."""

    SECTION = ""

    def __init__(self, config: SimpleNamespace):
        super().__init__(
            {name: vars(config) if name == self.SECTION else {"enabled": False} for name in _SECTIONS},
            current_world().rank,
        )
        for name, value in vars(config).items():
            if name != "enabled":
                setattr(self, name, value)


class TensorBoardMonitor(_One):
    SECTION = "tensorboard"


class csvMonitor(_One):  # noqa: N801 (DeepSpeed's name)
    SECTION = "csv_monitor"


class WandbMonitor(_One):
    SECTION = "wandb"
