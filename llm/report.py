"""What a run shows: progress with time left, a table row per iteration, responses, curves.png."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llm.rundir import Row

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Column:
    """One column of the table: its two-line heading, and what it shows of a row."""

    heading: tuple[str, str]
    value: Callable[[Row], object]
    form: str

    def show(self, row: Row) -> str:
        """The cell, as wide as the column."""
        value = self.value(row)
        text = "–" if value is None else format(value, self.form)
        return text.rjust(self.width)

    @property
    def width(self) -> int:
        return max(6, *(len(line) for line in self.heading))


def _metric(name: str, heading: tuple[str, str], form: str) -> Column:
    return Column(heading, lambda row: row.get(name), form)


METRICS = (
    _metric("win_rate", ("wins", "over μ"), ".3f"),
    _metric("kl_to_reference", ("KL to", "μ"), ".3f"),
    _metric("kl_to_equilibrium", ("KL(π*‖π_t)", "model"), ".4f"),
    _metric("exact_kl_to_equilibrium", ("KL(π*‖π_t)", "exact"), ".4f"),
    _metric("kl_to_exact_iterate", ("KL(exact", "‖model)"), ".4f"),
    _metric("duality_gap", ("duality", "gap"), ".4f"),
    _metric("entropy", ("entropy", ""), ".2f"),
    _metric("length", ("length", ""), ".1f"),
    _metric("self_bleu", ("self-", "BLEU"), ".3f"),
)


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """The columns that a run has something to say in."""
    shown = [Column(("t", ""), lambda row: row["iteration"], "d")]
    shown += [c for c in METRICS if any(c.value(row) is not None for row in rows)]
    star = rows[0].get("equilibrium_styles", {})
    shown += [
        Column((name, f"π* {share:.2f}"), lambda row, name=name: row["styles"][name], ".2f")
        for name, share in star.items()
    ]
    shown.append(_metric("loss", ("loss", ""), ".4g"))
    shown.append(_metric("seconds", ("seconds", ""), ".1f"))
    return shown


def table(rows: Sequence[Row]) -> list[str]:
    """Heading and a line per iteration."""
    columns = columns_of(rows)
    heads = ["  ".join(c.heading[i].rjust(c.width) for c in columns) for i in (0, 1)]
    return [*heads, *("  ".join(c.show(row) for c in columns) for row in rows)]


class Report:
    """A run on the console. Of several processes the main one speaks."""

    def __init__(self, console: Console, steps: int, quiet: bool = False) -> None:
        self.console, self.quiet, self.rows = console, quiet, []
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self.run = self.progress.add_task("iterations", total=steps)

    def say(self, text: str) -> None:
        """A line for people and for run.log."""
        if not self.quiet:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
            logger.info(text)

    def row(self, row: Row) -> None:
        """The table's next line; before the first, its heading."""
        lines = table([row])
        for line in lines[-1:] if self.rows else lines:
            self.say(line)
        self.rows.append(row)
        self.progress.update(self.run, completed=row["iteration"])

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for one stage; call what it gives with how much is done more."""
        task = self.progress.add_task(name, total=total)
        yield lambda done: self.progress.update(task, advance=done)
        self.progress.remove_task(task)


def compare_responses(reference: Sequence[Row], last: Sequence[Row]) -> list[str]:
    """Three prompts with a response before and after."""
    lines = []
    for before, after in list(zip(reference, last, strict=True))[:3]:
        lines += [f"prompt  {before['prompt']}", f"  μ     {before['responses'][0]}"]
        lines.append(f"  π_T   {after['responses'][0]}")
    return lines


def draw_curves(path: Path, rows: Sequence[Row]) -> bool:
    """curves.png: each metric against the iteration; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no curves.png: it needs matplotlib (pip install matplotlib)")
        return False
    panels = _panels(rows)
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4 * across, 2.8 * down), layout="constrained")
    for i, (title, lines) in enumerate(panels):
        axes = figure.add_subplot(down, across, i + 1)
        for label, values, style in lines:
            axes.plot([row["iteration"] for row in rows], values, style, label=label)
        if title.startswith("KL(") and min(v for _, values, _ in lines for v in values) > 0:
            axes.set_yscale("log")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("iteration")
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
    FigureCanvasAgg(figure).print_png(path)
    return True


Line = tuple[str, list[float], str]


def _panels(rows: Sequence[Row]) -> list[tuple[str, list[Line]]]:
    def values(name: str) -> list[float]:
        return [row[name] for row in rows]

    panels: list[tuple[str, list[Line]]] = []
    if rows[0].get("kl_to_equilibrium") is not None:
        model: Line = ("model", values("kl_to_equilibrium"), "o-")
        exact: Line = ("exact iterate", values("exact_kl_to_equilibrium"), "--")
        panels.append(("KL(π*‖π_t) in nats", [model, exact]))
    if "styles" in rows[0]:
        lines: list[Line] = []
        for i, (name, share) in enumerate(rows[0]["equilibrium_styles"].items()):
            lines.append((name, [row["styles"][name] for row in rows], f"C{i}o-"))
            lines.append((f"{name} in π*", [share] * len(rows), f"C{i}:"))
        panels.append(("share of each style", lines))
    for name, title in (
        ("win_rate", "win rate over μ"),
        ("kl_to_reference", "KL to μ in nats"),
        ("entropy", "entropy in nats"),
        ("length", "length in tokens"),
        ("self_bleu", "self-BLEU"),
        ("duality_gap", "duality gap"),
    ):
        if rows[0].get(name) is not None:
            panels.append((title, [(name, values(name), "o-")]))
    return panels
