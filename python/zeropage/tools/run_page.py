"""`zeropage report RUN`: makes an HTML page about a run from the file of `zeropage.metrics_file`. The page needs no
network and no scripts."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..report import MEMORY_KINDS, format_bytes
from .markup import Markup, joined, tag
from .run_records import Record, Run, read_run
from .svg_charts import Chart, Level, bars

_SHOWN_PAGES = 24
_SHOWN_STEPS = 200
_SHOWN_LINES = 10

_STYLE = Markup("""
:root{color-scheme:light dark;--back:#fbfbfa;--card:#fff;--ink:#1c1e21;--soft:#6a6f76;--grid:#e6e6e3;
--c0:#2f6fb2;--c1:#e0852b;--c2:#3d9a6c;--c3:#8d63b5;--c4:#9a8f80;--c5:#c2506b;--c6:#4aa3a8}
@media(prefers-color-scheme:dark){:root{--back:#14161a;--card:#1d2025;--ink:#e9eaec;--soft:#9ba1a9;--grid:#32363d;
--c0:#6ea8e0;--c1:#eda25a;--c2:#66bd92;--c3:#b493d6;--c4:#b5aa9b;--c5:#e0839a;--c6:#7cc5c9}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:20px 16px 48px;background:var(--back);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:0 0 4px}h2{font-size:1.05rem;margin:0 0 2px}p{margin:0 0 10px}.soft,figcaption{color:var(--soft);font-size:.9rem}
.source{color:var(--soft);font-size:.75rem;margin:8px 0 0;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:10px;margin:18px 0}
.tiles div,section{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:12px 14px;min-width:0}
.tiles b{display:block;font-size:1.25rem;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:12px}
.wide{grid-column:1/-1}svg{width:100%;height:auto;display:block}svg text{font-size:12px;fill:var(--soft)}
.grid{stroke:var(--grid)}.level{stroke:var(--ink);stroke-dasharray:6 4}.level1{stroke-dasharray:2 4}
polyline{fill:none;stroke-width:2;stroke-linejoin:round}
.hover{fill:transparent}.hover:hover{fill:var(--ink);fill-opacity:.06}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:.85rem;color:var(--soft);margin-top:6px}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:5px}
.legend .dash{height:0;border-top:2px dashed var(--ink);border-radius:0;vertical-align:4px}.legend .level1{border-top-style:dotted}
.bars{margin-top:8px}.label{font-size:.85rem;overflow-wrap:anywhere;margin-top:8px}
.bar{display:flex;align-items:center;gap:6px;height:14px}.bar i{height:9px;border-radius:2px;min-width:1px;flex:none}
.bar b{font-size:.75rem;font-weight:400;color:var(--soft)}
details{margin-top:12px}summary{cursor:pointer}pre,.scroll{overflow-x:auto;font-size:.85rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:2px 10px;text-align:right;white-space:nowrap}
""")


def page_of(run: Run) -> str:
    """The HTML document."""
    sections = [_section(figure, run.path.name) for figure in _figures(run)]
    charts = tag("div", *sections, _pages_section(run), class_="charts")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width,initial-scale=1"),
        tag("title", f"Run of {run.path.name}"),
        tag("style", _STYLE),
    )
    body = tag("body", _heading(run), _tiles(run), charts, _details(run))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="zeropage report", description="Draws a run: one HTML page from the file of zeropage.metrics_file."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the metrics file, or its folder")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: the metrics file's name with .html")
    given = parser.parse_args(arguments)
    run = read_run(given.run)
    output = given.output or run.path.with_suffix(".html")
    output.write_text(page_of(run), encoding="utf-8")
    if run.skipped:
        print(f"zeropage: {run.path}: {_skipped_text(run)}", file=sys.stderr)
    print(output)
    return 0


def _heading(run: Run) -> Markup:
    about = run.about
    ranks = "1 rank" if about["world_size"] == 1 else f"{about['world_size']} ranks"
    numel = f"{about['trainable_parameters']:,}"
    begun = f", begun {run.begun} times" if run.begun > 1 else ""
    text = f"{numel} parameters at stage {about['stage']} on {ranks}, {about['device']}{begun}. Zeropage {about['version']}. Figures of rank 0, "
    skipped = f" Of it, {_skipped_text(run)}." if run.skipped else ""
    return joined(
        [tag("h1", run.path.stem), tag("p", text, "from ", tag("code", run.path.name), ".", skipped, class_="soft")]
    )


def _skipped_text(run: Run) -> str:
    lines = ", ".join(map(str, run.skipped[:_SHOWN_LINES])) + (", ..." if len(run.skipped) > _SHOWN_LINES else "")
    count = "1 line was" if len(run.skipped) == 1 else f"{len(run.skipped)} lines were"
    return f"{count} left out: incomplete, or no record of this version (line {lines})"


def _tiles(run: Run) -> Markup:
    if not run.steps:
        return tag("p", "No step was recorded yet.")
    last, later = run.steps[-1], run.steps[1:] or run.steps
    seconds = sum(step["seconds"]["whole"] for step in later) / len(later)
    per_step = last["samples"] / last["step"]
    skipped = sum(not step["applied"] for step in run.steps)
    peak = sum(now_and_peak[1] for now_and_peak in last["bytes"].values())
    tiles = {
        "steps": f"{last['step']:,}" + (f" ({skipped} skipped)" if skipped else ""),
        "last loss": _number(last["loss"]),
        "time of a step": _milliseconds(seconds),
        "samples a second": _number(per_step / seconds if seconds > 0 else None),
        "engine's peak": _bytes(peak),
        "process": _bytes(last["process_bytes"]),
    }
    return tag(
        "div", *(tag("div", tag("span", k, class_="soft"), tag("b", v)) for k, v in tiles.items()), class_="tiles"
    )


@dataclass(frozen=True)
class _Figure:
    """sources: the fields of its numbers in the step records of the file."""

    title: str
    note: str
    sources: str
    drawing: Markup


def _figures(run: Run) -> Iterable[_Figure]:
    x = [step["step"] for step in run.steps]

    def column(*path: Any) -> list[float | None]:
        return [_at(step, path) for step in run.steps]

    loss = Chart(x, {"loss": column("loss")}, _number, from_zero=False).svg()
    yield _Figure("Loss", "mean of rank 0's micro batches", "loss", loss)
    rate = Chart(x, {"learning rate": column("lr")}, _number).svg()
    yield _Figure("Learning rate", "of the first group, for the next step", "lr", rate)
    whole = column("seconds", "whole")
    phases = {name: column("seconds", name) for name in ("forward", "backward", "step")}
    phases["between"] = [max(0.0, w - sum(values)) for w, *values in zip(whole, *phases.values(), strict=True)]
    # The first step includes work that happens once, and would make the others look flat.
    rest = slice(1, None) if len(x) > 2 else slice(None)
    split = Chart(x[rest], {name: values[rest] for name, values in phases.items()}, _milliseconds, stacked=True).svg()
    note = "host time; between: data and the program's own work"
    yield _Figure("Time of a step by part", note, "seconds.whole, .forward, .backward, .step", split)
    waits = {
        "for pages": "fault",
        "for gradients": "wait",
        "gradients under way": "reduce",
        "pages under way": "gather",
    }
    waiting = Chart(x[rest], {name: column("seconds", kind)[rest] for name, kind in waits.items()}, _milliseconds).svg()
    note = "transfers without waits overlap with the computation"
    yield _Figure("Waiting", note, "seconds.fault, .wait, .reduce, .gather", waiting)
    yield from _memory_figures(run, x, column)
    norm = Chart(x, {"gradient norm": column("grad_norm")}, _number).svg()
    yield _Figure("Gradient norm", "before clipping", "grad_norm", norm)
    if run.about["config"]["fp16"]["enabled"]:
        yield _Figure("Loss scale", "fp16", "loss_scale", Chart(x, {"loss scale": column("loss_scale")}, _number).svg())


def _memory_figures(run: Run, x: list[int], column: Callable[..., list[float | None]]) -> Iterable[_Figure]:
    held = {kind: column("bytes", kind, 0) for kind in _kinds(run)}
    for kind in run.steps[-1]["host_bytes"] if run.steps else ():
        held[f"{kind}, offloaded"] = [step["host_bytes"].get(kind, [0])[0] for step in run.steps]
    memory = Chart(x, held, _bytes, stacked=True, levels=_levels(run), binary=True).svg()
    sources = "bytes, host_bytes (now, peak); lines: formula_bytes, live_limit_bytes of the run record"
    yield _Figure("Memory of the engine", "after each step, by kind", sources, memory)
    counted = [sum(now for tier in ("bytes", "host_bytes") for now, _ in step[tier].values()) for step in run.steps]
    process = Chart(
        x, {"the process": column("process_bytes"), "of that counted by the engine": counted}, _bytes, binary=True
    ).svg()
    yield _Figure(
        "Memory of the process",
        "the rest: activations, torch, the program",
        "process_bytes, bytes, host_bytes",
        process,
    )


def _kinds(run: Run) -> list[str]:
    """The kinds of memory, in the order in which a step needs them."""
    counted = run.steps[-1]["bytes"] if run.steps else ()
    return sorted(counted, key=lambda kind: MEMORY_KINDS.index(kind) if kind in MEMORY_KINDS else len(MEMORY_KINDS))


def _levels(run: Run) -> list[Level]:
    """The bytes of the formula, and with the limit on live parameters at stage 3."""
    state = sum(run.about["formula_bytes"].values())
    levels = [Level("state by the formula", state)]
    limit = run.about["live_limit_bytes"]
    if limit is not None and limit < 2 * state:
        levels.append(Level("with the live limit", state + limit))
    return levels


def _pages_section(run: Run) -> Markup:
    pages = [page for page in (run.pages["pages"] if run.pages else []) if page[2] or page[3]]
    if not pages:
        return joined([])
    pages.sort(key=lambda page: -page[2])
    rows = [
        (f"{label}, {_bytes(size)}", (faults, evictions)) for label, size, faults, evictions in pages[:_SHOWN_PAGES]
    ]
    note = f"until step {(run.pages or {})['step']}; a fault is an operator that had to wait for its page"
    if len(pages) > _SHOWN_PAGES:
        note += f"; the {_SHOWN_PAGES} with most of {len(pages)}"
    drawing = bars(rows, ("faults", "evictions"), lambda v: f"{v:,}")
    figure = _Figure("Faults and evictions by page", note, "the last pages record", drawing)
    return _section(figure, run.path.name, wide=True)


def _section(figure: _Figure, file: str, wide: bool = False) -> Markup:
    heading = tag("h2", figure.title), tag("p", figure.note, class_="soft")
    source = tag("p", f"{file}: {figure.sources}", class_="source")
    return tag("section", *heading, figure.drawing, source, class_="wide" if wide else None)


def _details(run: Run) -> Markup:
    columns = {
        "step": lambda s: f"{s['step']}",
        "samples": lambda s: f"{s['samples']}",
        "loss": lambda s: _number(s["loss"]),
        "learning rate": lambda s: _number(s["lr"]),
        "time": lambda s: _milliseconds(s["seconds"]["whole"]),
        "faults so far": lambda s: f"{s['faults']}",
        "evictions so far": lambda s: f"{s['evictions']}",
    }
    head = tag("tr", *(tag("th", name) for name in columns))
    rows = [tag("tr", *(tag("td", cell(step)) for cell in columns.values())) for step in run.steps[-_SHOWN_STEPS:]]
    table = tag("div", tag("table", head, *rows), class_="scroll")
    config = tag("pre", json.dumps(run.about["config"], indent=2))
    return joined(
        [
            tag("details", tag("summary", f"Last {min(_SHOWN_STEPS, len(run.steps))} steps as numbers"), table),
            tag("details", tag("summary", "Effective configuration"), config),
        ]
    )


def _at(record: Record, path: tuple[Any, ...]) -> Any:
    """The value of a field; None: the record does not have it (kinds of memory may differ between steps)."""
    for key in path:
        if isinstance(record, dict) and key not in record:
            return None
        record = record[key]
    return record


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _bytes(value: float) -> str:
    return format_bytes(min(round(value), 2**63 - 1))
