"""Metrics to TensorBoard, CSV files and Weights & Biases: the sections `tensorboard`, `csv_monitor` and `wandb`.

Rank 0 writes once per optimizer step, and everything is written before the step returns: a killed run loses at most the
metrics of its last step. The x axis counts samples, as in DeepSpeed. A failure after the start of the run does not end
it; there is one warning.
"""

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from . import _C
from .errors import ConfigError

Event = tuple[str, float, int]
"""(name, value, samples so far)"""


class Writer(Protocol):
    """A destination of metrics."""

    def write_events(self, events: list[Event]) -> None: ...

    def close(self) -> None: ...


class TensorBoardWriter:
    """Event files in output_path/job_name."""

    def __init__(self, section: dict[str, Any]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", error) from None
        self._writer = SummaryWriter(log_dir=_job_folder(section))

    def write_events(self, events: list[Event]) -> None:
        for name, value, samples in events:
            self._writer.add_scalar(name, value, samples)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class CsvWriter:
    """A file output_path/job_name/Train_Samples_lr.csv for each metric, here Train/Samples/lr, with lines
    `samples,value`.

    A resumed run appends to the files in the same folder.
    """

    def __init__(self, section: dict[str, Any]):
        self._folder = Path(_job_folder(section))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, _C.AppendFile] = {}

    def write_events(self, events: list[Event]) -> None:
        for name, value, samples in events:
            file = self._files.get(name) or self._open(name)
            file.write(_row(samples, value))

    def _open(self, name: str) -> _C.AppendFile:
        header = _row("step", name.rsplit("/", 1)[-1])
        file = _C.AppendFile(str(self._folder / (name.replace("/", "_").replace(" ", "_") + ".csv")), begins="step,")
        if file.is_empty():
            file.write(header)
        self._files[name] = file
        return file

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class WandbWriter:
    """A run of Weights & Biases; WANDB_MODE=offline keeps it in the folder `wandb`; `wandb sync` sends it later."""

    def __init__(self, section: dict[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb", error) from None
        self._run = wandb.init(project=section["project"], group=section["group"], entity=section["team"])

    def write_events(self, events: list[Event]) -> None:
        # One call for each value of x: wandb closes a step when the next one begins.
        by_samples: dict[int, dict[str, float]] = {}
        for name, value, samples in events:
            by_samples.setdefault(samples, {})[name] = value
        for samples, values in by_samples.items():
            self._run.log(values, step=samples, commit=True)

    def close(self) -> None:
        self._run.finish()


_WRITERS: dict[str, Callable[[Any], Writer]] = {
    "tensorboard": TensorBoardWriter,
    "wandb": WandbWriter,
    "csv_monitor": CsvWriter,
}


class Monitor:
    """All writers that the configuration enables; none on ranks other than 0.

    Programs may add metrics of their own: `engine.monitor.write_events([("Valid/loss", 0.3, engine.global_samples)])`.
    """

    def __init__(self, config: dict[str, Any], rank: int):
        """config: the effective configuration. Raises ConfigError for a package that is not installed, OSError."""
        sections = [name for name in _WRITERS if config[name]["enabled"]] if rank == 0 else []
        self._writers: dict[str, Writer] = {name: _WRITERS[name](config[name]) for name in sections}
        self._failed: set[str] = set()

    @property
    def enabled(self) -> bool:
        """Whether anything is written by this rank."""
        return bool(self._writers)

    def write_events(self, events: list[Event]) -> None:
        """events: (name, value, samples so far). Cost: two system calls for each metric and file. A failed writer
        causes one warning."""
        for name, writer in self._writers.items():
            try:
                writer.write_events(events)
            except Exception as error:  # a full disk, or any error of another package
                self._say_failure(name, error)

    def close(self) -> None:
        """Closes the files; nothing is written afterwards."""
        for name, writer in self._writers.items():
            try:
                writer.close()
            except Exception as error:  # as in write_events
                self._say_failure(name, error)
        self._writers.clear()

    def _say_failure(self, name: str, error: Exception) -> None:
        if name not in self._failed:
            self._failed.add(name)
            _C.log_warn(
                f'"{name}": metrics cannot be written: {type(error).__name__}: {error}; training continues without them'
            )


def _row(*values: Any) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue()


def _job_folder(section: dict[str, Any]) -> str:
    return os.path.join(section["output_path"], section["job_name"])


def _missing(package: str, error: ImportError) -> ConfigError:
    return ConfigError(
        f'"{package}": {{"enabled": true}} needs the Python package {package}, which cannot be imported ({error}); '
        f"install it with `pip install {package}`, or remove the section"
    )
