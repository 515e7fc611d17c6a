"""The console output of a run: progress bars, a table with a row per iteration, responses."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from games.printable import printable
from llm.evaluation.metrics import METRICS, Metric
from llm.storage.files import Record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Column:
    """One column of a table: its two-line heading, its width, and the cell of a record."""

    heading: tuple[str, str]
    cell: Callable[[Record], str]
    width: int = 6

    def show(self, row: Record) -> str:
        """The cell, as wide as the column."""
        return self.cell(row).rjust(self.width)


def columns_of(rows: Sequence[Record], metrics: Sequence[Metric] = METRICS) -> list[Column]:
    """The columns of a run. Optional metrics have one where they are known in some row."""
    shown = [Column(("t", ""), lambda row: str(row["iteration"]), width=4)]
    for metric in in_table_order(metrics):
        known = [row for row in rows if row.get(metric.name) is not None]
        if isinstance(known[0][metric.name] if known else None, Mapping):
            shown += _class_columns(metric, known[0], metrics)
        elif known or not metric.optional:
            shown.append(_column(metric, known[:1]))
    return shown


def in_table_order(metrics: Sequence[Metric]) -> list[Metric]:
    """Those with a column: one that shares a panel stands beside the other, costs come last."""
    columns = [metric for metric in metrics if metric.in_table and metric.drawn_with is None]
    found = []
    for metric in sorted(columns, key=lambda metric: metric.priority < 0):
        guests = [other for other in metrics if other.drawn_with == metric.name]
        found += [metric, *(other for other in guests if other.in_table)]
    return found


def number(metric: Metric, row: Record) -> str:
    """A value, with its standard error where that is known and shown: 0.532±0.012."""
    value = row.get(metric.name)
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each:{metric.format}}" for name, each in value.items())
    text = format(value, metric.format)
    error = (row.get("standard_errors") or {}).get(metric.name)
    return f"{text}±{error:{metric.format}}" if metric.show_error and error is not None else text


def _column(metric: Metric, known: Sequence[Record]) -> Column:
    """The column of a number; `known` gives its width."""
    examples = [number(metric, row) for row in known]
    # One more than the example has, for a sign or another digit, where it fills the column.
    widths = [len(text) + ("±" in text) for text in examples]
    width = max(*(len(text) for text in metric.heading), *widths, 0)
    return Column(metric.heading, lambda row: number(metric, row), max(6, width))


def _class_columns(metric: Metric, row: Record, metrics: Sequence[Metric]) -> list[Column]:
    """A column for each class; the value of a metric that shares them stands in the heading."""
    guest = next((g for g in metrics if g.drawn_with == metric.name and row.get(g.name)), None)
    columns = []
    for name in row[metric.name]:
        second = "" if guest is None else f"{guest.label} {row[guest.name][name]:{guest.format}}"

        def cell(row: Record, name: str = name) -> str:
            value = (row.get(metric.name) or {}).get(name)
            return "–" if value is None else format(value, metric.format)

        columns.append(Column((name, second), cell, max(6, len(name), len(second))))
    return columns


def table(rows: Sequence[Record], metrics: Sequence[Metric] = METRICS) -> list[str]:
    """The heading, and a line for each row."""
    columns = columns_of(rows, metrics)
    return [*_heading(columns), *(_line(columns, row) for row in rows)]


def _heading(columns: Sequence[Column]) -> list[str]:
    return ["  ".join(c.heading[i].rjust(c.width) for c in columns) for i in (0, 1)]


def _line(columns: Sequence[Column], row: Record) -> str:
    return "  ".join(column.show(row) for column in columns)


class _ProgressLines:
    """Progress as lines, for a console that is not a terminal: one every `EVERY` seconds."""

    EVERY = 60.0

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.began = time.monotonic()
        self._ended = threading.Event()

    def line(self) -> str:
        """What is done, and the time left if that can be told."""
        seconds = time.monotonic() - self.began
        said = f"{self.name}: {self.done} of {self.total} after {seconds:.0f} s"
        if self.done == 0:
            return said
        rate = self.done / seconds
        return f"{said}, {rate:.3g} per second, {max(self.total - self.done, 0) / rate:.0f} s left"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Prints the lines to standard error and to run.log, however long a piece of work takes."""

        def say() -> None:
            while not self._ended.wait(self.EVERY):
                line = self.line()
                print(line, file=sys.stderr, flush=True)
                logger.info("%s", line)

        thread = threading.Thread(target=say, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()


class Report:
    """A run on the console. Of several processes only the main one prints."""

    def __init__(
        self,
        console: Console,
        steps: int,
        metrics: Sequence[Metric] = METRICS,
        *,
        quiet: bool = False,
    ) -> None:
        self.console, self.metrics, self.quiet = console, metrics, quiet
        self.columns: list[Column] = []
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
        """A line for the user and for run.log."""
        if not self.quiet:
            text = printable(text)
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
            logger.info("%s", text)

    def row(self, row: Record) -> None:
        """The next line of the table. The first row determines the columns and prints a heading."""
        if not self.columns:
            self.columns = columns_of([row], self.metrics)
            for line in _heading(self.columns):
                self.say(line)
        self.say(_line(self.columns, row))
        self.progress.update(self.run, completed=row["iteration"])

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar; call the context's value with the amount done since the last call."""
        task = self.progress.add_task(name, total=total)
        lines = _ProgressLines(name, total)

        def advance(done: int) -> None:
            self.progress.update(task, advance=done)
            lines.done += done

        seen = self.quiet or self.console.is_terminal  # by another process, or as a bar
        with nullcontext() if seen else lines.running():
            yield advance
        self.progress.remove_task(task)


# What the keys of `per_second` in metrics.jsonl count.
COUNTED = {
    "tokens sampled": "tokens of responses sampled",
    "tokens scored": "tokens of prompts and responses scored",
    "tokens trained": "tokens of prompts and responses trained on",
}


def rates_line(rates: Mapping[str, float]) -> str:
    """{what: amount per second} as a line, with three digits however small a rate is."""
    shown = {what: format(rate, ".0f" if rate >= 100 else ".3g") for what, rate in rates.items()}
    each = [f"{number} {COUNTED.get(what, what)}" for what, number in shown.items()]
    return f"per second: {', '.join(each)}"


def compare_responses(reference: Sequence[Record], last: Sequence[Record]) -> list[str]:
    """Three prompts, each with a response of μ and one of the final policy."""
    lines = []
    for before, after in list(zip(reference, last, strict=True))[:3]:
        lines += [f"prompt  {before['prompt']}", f"  μ     {before['responses'][0]}"]
        lines.append(f"  π_T   {after['responses'][0]}")
    return lines
