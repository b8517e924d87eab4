"""Charts as inline SVG, without scripts: lines, stacked areas and bars, each with values that appear under the pointer.

The drawing is 420 units wide, so that its text stays readable on a phone; colours are the page's variables --c0, --c1,
...
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .markup import Markup, joined, tag

WIDTH, HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 10, 10, 26
_MAX_POINTS = 200

Values = Sequence[float | None]
Formatter = Callable[[float], str]


@dataclass(frozen=True)
class Level:
    """A dashed line across a chart."""

    name: str
    value: float


@dataclass(frozen=True)
class Chart:
    """x: ascending. series: name -> one value for each x; None: a gap. stacked: areas on top of each other. binary: the
    axis is divided in powers of 1024."""

    x: Sequence[float]
    series: Mapping[str, Values]
    format: Formatter
    stacked: bool = False
    x_name: str = "step"
    levels: Sequence[Level] = field(default=())
    from_zero: bool = True
    binary: bool = False

    def svg(self) -> Markup:
        """The chart, and its legend when it has more than one series or a level."""
        if not self.x:
            return tag("p", "No step was recorded.")
        chart = self._thinned()
        names = [name for name, values in chart.series.items() if any(v is not None for v in values)]
        if not names:
            return tag("p", "Nothing of this was recorded.")
        columns = [
            [_or_zero(chart.series[name][i]) if chart.stacked else chart.series[name][i] for name in names]
            for i in range(len(chart.x))
        ]
        tops = [
            sum(map(_or_zero, column)) if chart.stacked else max((v for v in column if v is not None), default=None)
            for column in columns
        ]
        shown = [v for v in tops if v is not None] + [level.value for level in chart.levels]
        low = 0.0 if chart.from_zero else min(v for column in columns for v in column if v is not None)
        unit = 1024 ** int(math.log(max(1, *shown), 1024)) if self.binary else 1
        ticks = [unit * tick for tick in nice_ticks(low / unit, max(shown) / unit)]
        scale = _Scale(chart.x[0], chart.x[-1], ticks[0], ticks[-1])
        parts = _axes(scale, ticks, chart)
        parts += _areas(scale, chart.x, columns) if chart.stacked else _lines(scale, chart.x, columns)
        for i, level in enumerate(chart.levels):
            parts.append(_level_line(f"level level{i}", scale.y(level.value)))
        parts += _hover(scale, chart, names)
        drawing = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=", ".join(names))
        return joined([drawing, _legend(chart, names)])

    def _thinned(self) -> "Chart":
        """The chart with fewer points, so that lines stay readable: means of neighbours."""
        size = math.ceil(len(self.x) / _MAX_POINTS)
        if size == 1:
            return self
        starts = range(0, len(self.x), size)
        series = {name: [_mean(values[i : i + size]) for i in starts] for name, values in self.series.items()}
        x = [self.x[min(i + size, len(self.x)) - 1] for i in starts]
        return replace(self, x=[self.x[0], *x[1:]], series=series)


def bars(rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], format_value: Formatter) -> Markup:
    """Rows with a label and one bar for each name, all on one scale."""
    largest = max((value for _, values in rows for value in values), default=0) or 1
    out = []
    for label, values in rows:
        out.append(tag("div", label, class_="label"))
        for i, value in enumerate(values):
            bar = tag("i", style=f"width:calc((100% - 60px) * {value / largest:.3f});background:var(--c{i})")
            out.append(tag("div", bar, tag("b", format_value(value)), class_="bar"))
    legend = tag("div", *(_key(i, name) for i, name in enumerate(names)), class_="legend")
    return joined([legend, tag("div", *out, class_="bars")])


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about `count` steps apart."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # closer than the axis could show, or the same
        high = low + (abs(low) or 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


@dataclass(frozen=True)
class _Scale:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        span = self.x_high - self.x_low
        share = (value - self.x_low) / span if span else 0.5
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def _level_line(name: str, y: float) -> Markup:
    return tag("line", class_=name, x1=_LEFT, x2=WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}")


def _axes(scale: _Scale, ticks: list[float], chart: Chart) -> list[Markup]:
    out = []
    for tick in ticks:
        y = scale.y(tick)
        out.append(_level_line("grid", y))
        out.append(tag("text", chart.format(tick), x=_LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end"))
    ends = [(chart.x[0], "start"), (chart.x[-1], "end")] if len(chart.x) > 1 else [(chart.x[0], "middle")]
    for value, anchor in ends:
        out.append(
            tag("text", f"{chart.x_name} {value:,.12g}", x=f"{scale.x(value):.1f}", y=HEIGHT - 8, text_anchor=anchor)
        )
    return out


def _lines(scale: _Scale, x: Sequence[float], columns: list[list[float | None]]) -> list[Markup]:
    out = []
    for i in range(len(columns[0])):
        runs: list[list[str]] = [[]]
        for at, column in zip(x, columns, strict=True):
            value = column[i]
            if value is None:
                runs.append([])
            else:
                runs[-1].append(f"{scale.x(at):.1f},{scale.y(value):.1f}")
        for points in runs:
            if len(points) == 1:
                cx, cy = points[0].split(",")
                out.append(tag("circle", cx=cx, cy=cy, r="2.5", fill=f"var(--c{i})"))
            elif points:
                out.append(tag("polyline", points=" ".join(points), stroke=f"var(--c{i})"))
    return out


def _areas(scale: _Scale, x: Sequence[float], columns: list[list[float | None]]) -> list[Markup]:
    out = []
    base = [0.0] * len(x)
    # One point has no width: draw it as a bar.
    xs = [scale.x(at) for at in x] if len(x) > 1 else [WIDTH / 2 - 30, WIDTH / 2 + 30]
    for i in range(len(columns[0])):
        top = [low + _or_zero(column[i]) for low, column in zip(base, columns, strict=True)]
        upper, lower = (top, base) if len(x) > 1 else (top * 2, base * 2)
        points = [f"{px:.1f},{scale.y(v):.1f}" for px, v in zip(xs, upper, strict=True)]
        points += [f"{px:.1f},{scale.y(v):.1f}" for px, v in zip(reversed(xs), reversed(lower), strict=True)]
        out.append(tag("polygon", points=" ".join(points), fill=f"var(--c{i})"))
        base = top
    return out


def _hover(scale: _Scale, chart: Chart, names: list[str]) -> list[Markup]:
    """Invisible strips whose titles show the values."""
    edges = [scale.x(value) for value in chart.x]
    out = []
    for i, center in enumerate(edges):
        left = _LEFT if i == 0 else (edges[i - 1] + center) / 2
        right = WIDTH - _RIGHT if i + 1 == len(edges) else (edges[i + 1] + center) / 2
        values = [f"{name} {chart.format(v)}" for name in names if (v := chart.series[name][i]) is not None]
        title = tag("title", f"{chart.x_name} {chart.x[i]:,.12g}: {', '.join(values)}")
        width, height = f"{max(right - left, 0):.1f}", HEIGHT - _TOP - _BOTTOM
        out.append(tag("rect", title, class_="hover", x=f"{left:.1f}", y=_TOP, width=width, height=height))
    return out


def _legend(chart: Chart, names: list[str]) -> Markup:
    keys = [_key(i, name) for i, name in enumerate(names)] if len(names) > 1 else []
    for i, level in enumerate(chart.levels):
        dash = tag("i", class_=f"dash level{i}")
        keys.append(tag("span", dash, f"{level.name} {chart.format(level.value)}"))
    return tag("div", *keys, class_="legend") if keys else joined([])


def _key(index: int, name: str) -> Markup:
    return tag("span", tag("i", style=f"background:var(--c{index})"), name)


def _or_zero(value: float | None) -> float:
    return 0.0 if value is None else value


def _mean(values: Values) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
