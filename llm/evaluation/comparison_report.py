"""The tables and the picture of a comparison, from the content of comparison.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from llm.evaluation.metrics import (
    COMPARISONS,
    KL_TO_EQUILIBRIUM,
    METRICS,
    SECONDS,
    TOKENS,
    Metric,
)
from llm.evaluation.report import Column
from llm.storage.files import Record
from solvers import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE_STYLES = ("-", "--", ":", "-.")  # recipes of one rule, in their order
UNKNOWN = "–"


def columns_of(record: Record, metrics: Sequence[Metric] = METRICS) -> list[Column]:
    """The columns with at least one value: the recipe, its metrics at the end, and what it took."""
    of_recipe = [
        _field("recipe", ("recipe", "")),
        _field("rule", ("rule", "")),
        _field("fit", ("fit", "")),
        _field("target", ("target", "")),
        _field("samples_per_prompt", ("K", "")),
        _field("iterations", ("itera-", "tions")),
    ]
    # What a comparison measures in its own way takes the place of the metric of that name.
    own = {
        "win_rate": Column(("wins over", "start"), _wins),
        "kl_to_equilibrium": Column(("KL(π*‖π), its", "own π*"), _kl),
        "duality_gap": _field("duality_gap", ("duality gap", "at τ = 0"), ".4f"),
    }
    measured = [
        own.get(metric.name) or Column(metric.heading, lambda row, m=metric: _last(m, row))
        for metric in metrics
        if metric.name in own or (metric.in_table and metric in main(metrics))
    ]
    took = [
        _field("optimizer_steps", ("train", "steps"), ",d"),
        _field("tokens", TOKENS.heading, TOKENS.format),
        _field("comparisons", COMPARISONS.heading, COMPARISONS.format),
        _field("seconds", SECONDS.heading, ".0f"),
    ]
    columns = [*of_recipe, *measured, *took]
    return [c for c in columns if any(c.cell(row) != UNKNOWN for row in record["recipes"])]


def main(metrics: Sequence[Metric]) -> list[Metric]:
    """The main metrics of the package, and those of the user."""
    return [m for m in metrics if (m.priority > 0 or m not in METRICS) and m.drawn_with is None]


def _field(name: str, heading: tuple[str, str], form: str = "") -> Column:
    def cell(row: Record) -> str:
        value = row.get(name)
        return UNKNOWN if value is None else format(value, form)

    return Column(heading, cell)


def _last(metric: Metric, row: Record) -> str:
    """A metric of the last iterate."""
    value = row["trace"][-1].get(metric.name)
    return format(value, metric.format) if isinstance(value, float | int) else UNKNOWN


def _wins(row: Record) -> str:
    rate, error = row["win_rate"], row["win_rate_error"]
    if rate is None:
        return UNKNOWN
    return f"{rate:.3f}" if error is None else f"{rate:.3f} ± {error:.3f}"


def _kl(row: Record) -> str:
    first, last = row["trace"][0]["kl_to_equilibrium"], row["kl_to_equilibrium"]
    return UNKNOWN if last is None else f"{first:.3f} → {last:.3f}"


TEXTS = ("recipe", "rule", "fit", "target")


def show(record: Record, console: Console, metrics: Sequence[Metric] = METRICS) -> None:
    """Prints the table, notes on its rows, and the win rates of all pairs."""
    limits = [f"{limit:,} {name}" for name, limit in record["budget"].items() if limit is not None]
    console.print(f"{record['config']}: at most {' and '.join(limits)} for each recipe")
    console.print(table(record, console, metrics))
    for note in notes(record):
        console.print(note)
    if record["pairwise"] is not None:
        exact = record["pairwise"]["exact"]
        how = "exact" if exact else "judged on the evaluation prompts, ± standard error"
        console.print(f"\nwin rate of the row over the column, {how}")
        console.print(*matrix(record, console), sep="\n")


def table(record: Record, console: Console, metrics: Sequence[Metric] = METRICS) -> Table:
    """A row per recipe and a column per known quantity; skipped recipes at the end.

    Where the console is too narrow, several quantities share a column, one below the other.
    """
    columns = columns_of(record, metrics)
    unbounded = console.options.update(max_width=1000)
    found = _table(record, columns, 1)
    for height in range(2, len(columns)):
        if console.measure(found, options=unbounded).maximum <= console.width:
            break
        found = _table(record, columns, height)
    return found


def _table(record: Record, columns: Sequence[Column], height: int) -> Table:
    """A table in which each column shows `height` of the columns, one below the other."""
    found = _blank()
    groups = [columns[i : i + height] for i in range(0, len(columns), height)]
    for group in groups:
        if len(group) == 1:
            head = "\n".join(group[0].heading)
        else:
            whole = (" ".join(column.heading).replace("- ", "").strip() for column in group)
            head = "\n".join(whole)
        left = group[0].heading[0] in TEXTS
        found.add_column(head, justify="left" if left else "right", no_wrap=True)
    for row in record["recipes"]:
        found.add_row(*("\n".join(c.cell(row) for c in group) for group in groups))
        if height > 1:
            found.add_section()
    for row in record["skipped"]:
        found.add_row(row["recipe"], "left out", style="dim")
    return found


def matrix(record: Record, console: Console) -> list[Table]:
    """Win rates of each row over each column, in several tables where the console is narrow."""
    unbounded = console.options.update(max_width=1000)
    n = len(record["pairwise"]["policies"])
    across = n
    while across > 1:
        widest = _matrix(record, range(across))
        if console.measure(widest, options=unbounded).maximum <= console.width:
            break
        across -= 1
    return [_matrix(record, range(i, min(i + across, n))) for i in range(0, n, across)]


def _matrix(record: Record, columns: range) -> Table:
    known = record["pairwise"]
    rates, errors = known["win_rate"], known["standard_error"]
    found = _blank()
    found.add_column("", no_wrap=True)
    for j in columns:
        found.add_column(str(j + 1), justify="right", no_wrap=True)
    for i, name in enumerate(known["policies"]):
        cells = [f"{rates[i][j]:.3f}" for j in columns]
        if errors is not None:
            cells = [
                cell if errors[i][j] is None else f"{cell}\n±{errors[i][j]:.3f}"
                for cell, j in zip(cells, columns, strict=True)
            ]
        if i in columns:
            cells[columns.index(i)] = UNKNOWN
        found.add_row(f"{i + 1} {name}", *cells)
    return found


CLAIMED = {
    "average": "only the average iterate converges to this π* in theory, not the last one",
    "neither": "no guarantee that an iterate converges to this π*",
}
FITTED = "trained on selected pairs, or on winners without win rates: no guarantee of this π*"


def notes(record: Record) -> list[str]:
    """Reasons for skipped recipes, and where convergence is not guaranteed; each reason once."""
    why: dict[str, list[str]] = {}
    for row in record["skipped"]:
        why.setdefault(f"left out: {row['reason']}", []).append(row["recipe"])
    for row in record["recipes"]:
        if row["kl_to_equilibrium"] is None:
            continue
        if row["claims"] in CLAIMED:
            why.setdefault(CLAIMED[row["claims"]], []).append(row["recipe"])
        elif not row["reaches"]:
            why.setdefault(FITTED, []).append(row["recipe"])
    return [f"{', '.join(names)}: {reason}" for reason, names in why.items()]


def _blank() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False)


PANELS = 3  # of built-in metrics


@style.styled
def picture(record: Record, metrics: Sequence[Metric] = METRICS) -> Figure:
    """The metrics of the iterates against the tokens generated so far."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    recipes = record["recipes"]
    looks, panels = _looks(recipes), panels_of(record, metrics)
    down = len(panels) // 2 + 1
    figure = Figure(figsize=(10, 3.8 * down))
    cells = list(figure.subplots(down, 2).flat)
    title = f"{record['config']}: recipes on one budget"
    if KL_TO_EQUILIBRIUM in panels:
        title += "; π*: the target of each recipe's own rule"
    barred = False
    for axes, metric in zip(cells, panels, strict=False):
        axes.set_title(metric.panel_title)
        axes.set_xlabel("tokens generated")
        if metric.level is not None:
            axes.axhline(metric.level, color="0.6", linewidth=1, zorder=0)
        widest: list[float] = []
        for row, look in zip(recipes, looks, strict=True):
            known = [point for point in row["trace"] if _is_number(point[metric.name])]
            axes.plot([p["tokens"] for p in known], [p[metric.name] for p in known], **look)
            bars = [
                (p["tokens"], p[metric.name], p["standard_errors"][metric.name])
                for p in known
                if metric.name in (p["standard_errors"] or {})
            ]
            if bars:
                tokens, values, errors = map(np.array, zip(*bars, strict=True))
                axes.vlines(tokens, values - errors, values + errors, look["color"], lw=1)
                widest += errors.tolist()
                barred = True
        if metric.log_scale:
            axes.set_yscale("log")
        style.keep_noise_small(axes, widest)
    if barred:
        title += "; bars: ± one standard error"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    for axes in cells[len(panels) :]:
        axes.axis("off")
    handles = [
        Line2D([], [], label=f"{row['recipe']}   [{row['rule']} × {row['fit']}]", **look)
        for row, look in zip(recipes, looks, strict=True)
    ]
    legend = cells[len(panels)].legend(
        handles=handles, loc="upper left", borderaxespad=0.0, alignment="left", handlelength=3,
        title="recipe   [rule × fit]", fontsize=9 * min(1.0, 14 / len(handles)),
    )  # fmt: skip
    legend.get_title().set(fontsize=9, fontstyle="italic")
    return figure


def panels_of(record: Record, metrics: Sequence[Metric] = METRICS) -> list[Metric]:
    """The metrics that are drawn: the first main ones that are known, and those of the user."""
    points = [point for row in record["recipes"] for point in row["trace"]]
    drawn = [
        metric
        for metric in sorted(main(metrics), key=lambda metric: -metric.priority)
        if metric.in_picture and any(_is_number(point.get(metric.name)) for point in points)
    ]
    own = [metric for metric in drawn if metric not in METRICS]
    return [metric for metric in drawn if metric in METRICS][:PANELS] + own


def _is_number(value: object) -> bool:
    return isinstance(value, float | int)


def _looks(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """A color and a marker for each rule, a line style for each recipe of it."""
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    own = [rule for rule in rules if rule not in style.RULES]
    looks, seen = [], dict.fromkeys(rules, 0)
    for row in rows:
        rule = row["rule"]
        look: dict[str, Any] = style.of_rule(rule, own.index(rule) if rule in own else 0)
        look["linestyle"] = LINE_STYLES[seen[rule] % len(LINE_STYLES)]
        seen[rule] += 1
        looks.append(look)
    return looks
