"""The page docs/models.md: written from the results of a sweep, and read again by the test that tries some of them."""

import importlib.metadata
import sys
from collections.abc import Iterable
from pathlib import Path

from libraries import FOLDER
from trial import NOT_BUILT, STEPS, TRAINS, Result

WITHIN_ROUNDING = "trains, within rounding"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
HEAD = """# Architectures that were tried

The sweep tried every architecture of transformers that has a model class, one model of each module of timm, and models
of diffusers. It built each from the configuration class with tiny sizes and random weights, and trained {steps} steps with
AdamW at stage 3 on two ranks. Every parameter had its own page, sharded over the ranks, and no page stayed gathered.

- "trains": the final parameters are within 1e-5 of plain PyTorch's on the same data in one process.
- "trains, within rounding": they are not within 1e-5. But plain PyTorch itself differs as much if the last bits of the
  first weights change, mostly because the model normalizes over a batch of two.

This command tries all architectures and writes this page. CI tries some of those that train.

    .venv/bin/python tests/architectures/sweep.py --results build/architectures.jsonl --write docs/models.md

| library | version | train | differ or fail | were not run |
| --- | --- | --- | --- | --- |
"""
TABLE = """

## Results

The sweep called the model with the inputs in the table. Parts of a model that do not use these inputs received no
gradient.

| architecture | library | class | parameters | inputs | result |
| --- | --- | --- | --- | --- | --- |
"""
NOT_RUN = """

## Not run

Plain PyTorch could not build or run these with the reduced sizes, or without packages and data that they need. So
nothing is known about them.

| architecture | library | why |
| --- | --- | --- |
"""


def _cell(text: str, longest: int = 70) -> str:
    text = text.replace("|", "/").replace("<", "(").replace(">", ")")
    return text if len(text) <= longest else text[: longest - 3] + "..."


def page_of(results: Iterable[Result]) -> str:
    results = sorted(results, key=lambda result: (result.library, result.name))
    text = HEAD.format(steps=STEPS)
    for library in dict.fromkeys(result.library for result in results):
        of_it = [result.result for result in results if result.library == library]
        train, not_built = of_it.count(TRAINS), of_it.count(NOT_BUILT)
        found = iter(importlib.metadata.distributions(name=library, path=[*sys.path, str(FOLDER)]))
        version = next(found).version
        text += f"| {library} | {version} | {train} | {len(of_it) - train - not_built} | {not_built} |\n"
    text += TABLE
    for r in results:
        if r.result != NOT_BUILT:
            trained = WITHIN_ROUNDING if ";" in r.detail else TRAINS
            outcome = trained if r.result == TRAINS else f"{r.result}: {_cell(r.detail)}"
            text += f"| {r.name} | {r.library} | {r.kind} | {r.parameters:,} | {_cell(', '.join(r.inputs), 50)} | {outcome} |\n"
    text += NOT_RUN
    for r in results:
        if r.result == NOT_BUILT:
            text += f"| {r.name} | {r.library} | {_cell(r.detail)} |\n"
    return text


def trained(most_parameters: int) -> list[tuple[str, str]]:
    """(library, architecture) of the page's rows that train and have at most so many parameters, in the page's
    order."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ")
    ]
    return [
        (row[1], row[0])
        for row in rows
        if len(row) == 6 and row[5] == TRAINS and int(row[3].replace(",", "")) <= most_parameters
    ]
