"""Tables of the commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from games.printable import printable

from ..compare import Run, Skipped
from ..loop import Status

MOST_ACTIONS = 20


COLUMNS = [
    "rule", "target", "η", "steps", "status", "claimed", "gap, last", "gap, average",
    "KL(π*‖π)", "seconds",
]  # fmt: skip
NUMBERS = {"η", "steps", "gap, last", "gap, average", "KL(π*‖π)", "seconds"}


def comparison(runs: Sequence[Run | Skipped], title: str, console: Console) -> Table:
    """One row for each run: each of `COLUMNS` in a column of its own if the console is wide enough,
    else two in one column.

    Of a batch of games, each number is the largest.
    """
    wide = _comparison(runs, title, [(name,) for name in COLUMNS])
    unbounded = console.options.update(max_width=1000)
    if console.measure(wide, options=unbounded).maximum <= console.width:
        return wide
    return _comparison(runs, title, list(zip(COLUMNS[::2], COLUMNS[1::2], strict=True)))


def _comparison(runs: Sequence[Run | Skipped], title: str, columns: list[tuple[str, ...]]) -> Table:
    table = _table(title)
    for names in columns:
        justify = "right" if set(names) <= NUMBERS else "left"
        fold = "rule" in names
        table.add_column("\n".join(names), justify=justify, no_wrap=not fold, overflow="fold")
    for run in runs:
        cells = _cells(run)
        failed = isinstance(run, Run) and run.solution.status is Status.NON_FINITE
        style = "dim" if isinstance(run, Skipped) else "red" if failed else None
        row = ["\n".join(cells[name] for name in names) for names in columns]
        table.add_row(*row, style=style)
    return table


def _cells(run: Run | Skipped) -> dict[str, str]:
    if isinstance(run, Skipped):
        return dict.fromkeys(COLUMNS, "") | {"rule": run.label, "target": "not applicable"}
    solution = run.solution
    return {
        "rule": run.label,
        "target": run.target,
        "η": _step_sizes(run),
        "steps": str(solution.steps),
        "status": str(solution.status),
        "claimed": run.rule.converges,
        "gap, last": small(solution.gap),
        "gap, average": small(solution.average_gap),
        "KL(π*‖π)": small(run.kl[-1]),
        "seconds": f"{solution.seconds:.2f}",
    }


def notes(runs: Sequence[Run | Skipped]) -> list[str]:
    """Notes on the rows, each text once."""
    labels: dict[str, list[str]] = {}
    for run in runs:
        for note in _notes(run):
            labels.setdefault(note, []).append(run.label)
    return [f"{', '.join(names)}: {note}" for note, names in labels.items()]


def _notes(run: Run | Skipped) -> list[str]:
    found = [run.note] if run.note else []
    if isinstance(run, Skipped):
        return found
    if np.isnan(run.kl[-1]).any():
        found.append("no KL: the equilibrium is one of many")
    if run.equilibrium.status is not Status.CONVERGED:
        gap = small(run.equilibrium.duality_gap)
        found.append(f"its target equilibrium is known only to a duality gap of {gap}")
    if run.solution.status is Status.NON_FINITE:
        found.append("diverged (NaN or infinity); the table shows the last finite policy")
    return found


def policies(columns: dict[str, np.ndarray], labels: tuple[str, ...] | None, title: str) -> Table:
    """{name: (n,)}: actions by their probability in the first column, largest first.

    Beyond MOST_ACTIONS the rest is counted and added up.
    """
    table = _table(title)
    table.add_column("action")
    for name in columns:
        table.add_column(name, justify="right")
    first = next(iter(columns.values()))
    order = np.argsort(-first, kind="stable")
    shown, rest = order[:MOST_ACTIONS], order[MOST_ACTIONS:]
    for i in shown.tolist():
        name = printable(labels[i]) if labels else str(i + 1)
        table.add_row(name, *(f"{values[i]:.6f}" for values in columns.values()))
    if len(rest):
        sums = (f"{values[rest].sum():.6f}" for values in columns.values())
        table.add_row(f"{len(rest)} more", *sums, style="dim")
    return table


def facts(rows: dict[str, Any]) -> Table:
    """Names and values, without a head."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, printable(str(value)))
    return table


def catalogue(names: dict[str, str]) -> Table:
    """The named games."""
    table = _table("")
    table.add_column("game", no_wrap=True)
    table.add_column("description")
    for name, about in names.items():
        table.add_row(name, about)
    return table


def small(values: np.ndarray | float) -> str:
    """The largest in size of a batch of distances, with its sign."""
    flat = np.ravel(values)
    largest = float(flat[np.argmax(np.abs(flat))])
    if np.isnan(largest):
        return "–"
    return f"{largest:.1e}" if largest != 0 else "0"


def span(values: np.ndarray | float) -> str:
    """A number; of a batch, from the least to the greatest."""
    ends = float(np.min(values)), float(np.max(values))
    shown = (f"{0.0 if abs(end) < 1e-14 else end:.10g}" for end in ends)  # of rounding errors
    return " to ".join(dict.fromkeys(shown))


def _step_sizes(run: Run) -> str:
    """η, or the first and the last step size of a schedule."""
    eta = run.rule.step_size
    if isinstance(eta, float):
        return f"{eta:.3g}"
    if not callable(run.rule.eta):
        return "–"
    return f"{run.rule.eta(0):.2g} → {run.rule.eta(max(run.solution.steps - 1, 0)):.2g}"


def _table(title: str) -> Table:
    return Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
