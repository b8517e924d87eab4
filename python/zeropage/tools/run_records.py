"""Reads the file of `zeropage.metrics_file`, which is not trusted: `zeropage report` and `top` get only complete
records.

1. The file is read line by line, and a line may have `_MAX_LINE_BYTES`.
2. A line counts if it is JSON and has the fields of its kind of record with their types (`_FIELDS`). Numbers must be
   finite and of a size that can be drawn.
3. Every other line is left out and counted: incomplete lines after a kill or on a full disk, and lines of other
   programs.
"""

import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ConfigError, IoError

_MAX_LINE_BYTES = 64 << 20
_MAX_DEPTH = 32
_SMALLEST, _LARGEST = 1e-100, 1e100  # NaN is neither
_LARGEST_COUNT = 2**53

Record = dict[str, Any]
Check = Callable[[Any], bool]


@dataclass
class Run:
    """The content of the file: its last run, the steps in order (of a repeated step the later record), the last page
    counts."""

    path: Path
    about: Record
    steps: list[Record] = field(default_factory=list)
    pages: Record | None = None
    begun: int = 0  # number of starts
    skipped: list[int] = field(default_factory=list)  # numbers of the lines that are no records


def read_run(source: Path) -> Run:
    """source: a metrics file, or a folder with one *.jsonl. Lines that are no records are left out. Raises ConfigError,
    IoError."""
    path = _metrics_path(source)
    run = Run(path, {})
    steps: dict[int, Record] = {}
    number = 0
    for number, record in enumerate(_records(path), 1):
        if record is None:
            run.skipped.append(number)
        elif record["record"] == "run":
            run.about, run.begun, run.pages = record, run.begun + 1, None
        elif record["record"] == "step":
            steps[record["step"]] = record
        else:
            run.pages = record
    if not run.begun:
        raise ConfigError(
            f"{path}: expected a file of zeropage.metrics_file, which has a record of the run; got {number} lines without one"
        )
    run.steps = [steps[step] for step in sorted(steps)]
    return run


def parse_record(line: bytes) -> Record | None:
    """The record in a line of the file, or None."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not _is_shallow(record, _MAX_DEPTH):
        return None
    fields = _FIELDS.get(record["record"]) if isinstance(record.get("record"), str) else None
    if fields is None or not all(name in record and is_right(record[name]) for name, is_right in fields.items()):
        return None
    return record


def _records(path: Path) -> Iterator[Record | None]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ConfigError(f"{path}: expected a metrics file, got a folder, a pipe or a device")
        with open(path, "rb") as file:
            yield from map(parse_record, _lines(file))
    except OSError as error:
        raise IoError(f"{path}: expected a readable metrics file, got: {error.strerror}") from None


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines; of a line that is too long only the start, which is no record."""
    while line := file.readline(_MAX_LINE_BYTES):
        yield line
        while len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(_MAX_LINE_BYTES)


def _metrics_path(source: Path) -> Path:
    if not source.is_dir():
        return source
    found = sorted(source.glob("*.jsonl"))
    if len(found) != 1:
        names = ", ".join(repr(path.name) for path in found) or "none"
        raise ConfigError(f"{source}: expected one metrics file (*.jsonl) in this folder, got {names}; name the file")
    return found[0]


def _is_shallow(value: Any, depth: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_shallow(part, depth - 1) for part in parts)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and (value == 0 or _SMALLEST <= abs(value) <= _LARGEST)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_COUNT


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_seconds(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_held(value: Any) -> bool:
    """Bytes now, and their peak."""
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))


def _or_null(is_right: Check) -> Check:
    return lambda value: value is None or is_right(value)


def _dict_of(is_right: Check, *names: str) -> Check:
    """Any keys, `names` among them."""
    return lambda value: isinstance(value, dict) and value.keys() >= set(names) and all(map(is_right, value.values()))


def _is_config(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("fp16"), dict)
        and isinstance(value["fp16"].get("enabled"), bool)
    )


def _is_page(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and _is_text(value[0]) and all(map(_is_count, value[1:]))


_FIELDS: dict[str, dict[str, Check]] = {
    "run": {
        "version": _is_text,
        "world_size": _is_count,
        "stage": _is_count,
        "device": _is_text,
        "trainable_parameters": _is_count,
        "formula_bytes": _dict_of(_is_count),
        "live_limit_bytes": _or_null(lambda value: type(value) is int and value >= 0),
        "config": _is_config,
    },
    "step": {
        "step": lambda value: _is_count(value) and value >= 1,
        "samples": _is_count,
        "loss": _or_null(_is_number),
        "lr": _or_null(_is_number),
        "grad_norm": _or_null(_is_number),
        "loss_scale": _or_null(_is_number),
        "applied": lambda value: isinstance(value, bool),
        "seconds": _dict_of(_is_seconds, "whole", "forward", "backward", "step", "fault", "wait", "reduce", "gather"),
        "bytes": _dict_of(_is_held),
        "host_bytes": _dict_of(_is_held),
        "process_bytes": _is_count,
        "faults": _is_count,
        "evictions": _is_count,
    },
    "pages": {"step": _is_count, "pages": lambda value: isinstance(value, list) and all(map(_is_page, value))},
}
