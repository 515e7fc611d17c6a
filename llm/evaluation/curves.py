"""curves.png: the metrics of a run against the iteration."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm.evaluation.metrics import METRICS, Metric
from llm.storage.files import Record
from solvers import outputs, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# Okabe and Ito (2008), as in solvers.style, without the yellow that is too light for a line.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")


@dataclass(frozen=True)
class Line:
    """A curve of a panel: NaN where a value or a standard error is not known."""

    label: str | None
    values: list[float]
    errors: list[float]
    color: str = COLORS[0]
    form: str = "o-"


@dataclass(frozen=True)
class Panel:
    """The curves of one metric, and of those that are drawn with it."""

    title: str
    lines: list[Line]
    log_scale: bool = False
    level: float | None = None


def draw_curves(path: Path, rows: Sequence[Record], metrics: Sequence[Metric] = METRICS) -> bool:
    """Writes a PNG; without matplotlib logs a warning and returns False."""
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("no curves.png: it needs matplotlib (pip install matplotlib)")
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure_of(rows, metrics))
    outputs.write_whole(path, canvas.print_png)
    return True


@style.styled
def figure_of(rows: Sequence[Record], metrics: Sequence[Metric] = METRICS) -> Figure:
    """A panel for each metric that changes; bars are ± one standard error."""
    from matplotlib.figure import Figure

    panels = panels_of(rows, metrics)
    across = max(1, min(3, len(panels)))
    down = max(1, -(-len(panels) // across))
    figure = Figure(figsize=(4 * across, 2.8 * down + 0.3))
    for i, panel in enumerate(panels):
        _draw(figure.add_subplot(down, across, i + 1), panel, [row["iteration"] for row in rows])
    lines = [
        metric.caption.format(rows[0][metric.name])
        for metric in metrics
        if metric.caption is not None and rows[0].get(metric.name) is not None
    ]
    if any(math.isfinite(e) for panel in panels for line in panel.lines for e in line.errors):
        lines.append("bars: ± one standard error over the prompts")
    figure.suptitle("\n".join(lines), fontsize=9)
    return figure


def _draw(axes: Axes, panel: Panel, iterations: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    if panel.level is not None:
        axes.axhline(panel.level, color="0.6", linewidth=1, zorder=0)
    for line in panel.lines:
        axes.plot(iterations, line.values, line.form, color=line.color, label=line.label)
        known = [
            point
            for point in zip(iterations, line.values, line.errors, strict=True)
            if all(map(math.isfinite, point))
        ]
        axes.vlines(
            [t for t, _, _ in known],
            [value - error for _, value, error in known],
            [value + error for _, value, error in known],
            line.color,
            lw=1.2,
        )
    style.keep_noise_small(axes, [e for line in panel.lines for e in line.errors])
    if panel.log_scale and all(v > 0 for line in panel.lines for v in line.values if v == v):
        axes.set_yscale("log")
    axes.set_title(panel.title)
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if sum(line.label is not None for line in panel.lines) > 1:
        _extend_upwards(axes, 0.35)
        axes.legend(ncols=2, loc="upper right")


def _extend_upwards(axes: Axes, share: float) -> None:
    """Room for a legend: that share of the height, above the curves."""
    transform = axes.yaxis.get_transform()
    low, high = transform.transform(axes.get_ylim())
    top = transform.inverted().transform([high + share * (high - low)])
    axes.set_ylim(top=float(top[0]))


def panels_of(rows: Sequence[Record], metrics: Sequence[Metric] = METRICS) -> list[Panel]:
    """The panels of what is known of a run and changes, by priority."""
    panels = []
    hosts = [metric for metric in metrics if metric.in_picture and metric.drawn_with is None]
    for metric in sorted(hosts, key=lambda metric: -metric.priority):
        guests = [m for m in metrics if m.drawn_with == metric.name and _known(m, rows)]
        lines = _lines(metric, rows, alone=not guests)
        title = metric.panel_title
        for number, guest in enumerate(guests, start=1):
            drawn = _lines(guest, rows, number)
            if any(line.label is None for line in drawn):
                dots = {":": "dotted", "--": "dashed"}.get(guest.line, guest.line)
                title += f" ({dots}: {guest.label})"
            lines += drawn
        if not any(map(_changes, lines)):
            continue  # not known, or the same in all rows
        panels.append(Panel(title, lines, metric.log_scale, metric.level))
    return panels


def _changes(line: Line) -> bool:
    """Whether the values differ by more than the rounding of a mean."""
    known = [value for value in line.values if math.isfinite(value)]
    return bool(known) and max(known) - min(known) > 1e-9 * max(map(abs, known))


def _known(metric: Metric, rows: Sequence[Record]) -> bool:
    return any(row.get(metric.name) is not None for row in rows)


def _lines(
    metric: Metric, rows: Sequence[Record], number: int = 0, alone: bool = False
) -> list[Line]:
    """A line for a number; for classes one each, in the same colors whatever metric it is.

    `number`: 0 for the metric whose panel it is, 1, 2, … for others. Lines of classes are labeled
    by the first of them.
    """
    values = [row.get(metric.name) for row in rows]
    errors = [(row.get("standard_errors") or {}).get(metric.name) for row in rows]
    classes = dict.fromkeys(name for v in values if isinstance(v, Mapping) for name in v)
    if classes:
        return [
            Line(
                None if number else name,
                [_number(v.get(name) if isinstance(v, Mapping) else None) for v in values],
                [_number(e.get(name) if isinstance(e, Mapping) else None) for e in errors],
                COLORS[i % len(COLORS)],
                metric.line,
            )
            for i, name in enumerate(classes)
        ]
    if not any(isinstance(v, float | int) for v in values):
        return []
    label = None if alone else metric.label
    color = COLORS[number % len(COLORS)]
    return [Line(label, [*map(_number, values)], [*map(_number, errors)], color, metric.line)]


def _number(value: object) -> float:
    return float(value) if isinstance(value, float | int) else math.nan
