"""What a run says: progress with time left, a table row per iteration, responses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llm.storage.files import Record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Column:
    """One column of the table: its two-line heading, and what it shows of a row."""

    heading: tuple[str, str]
    value: Callable[[Record], object]
    form: str

    def show(self, row: Record) -> str:
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


def columns_of(rows: Sequence[Record]) -> list[Column]:
    """The columns that a run has something to say in."""
    shown = [Column(("t", ""), lambda row: row["iteration"], "d")]
    shown += [c for c in METRICS if any(c.value(row) is not None for row in rows)]
    star = rows[0].get("equilibrium_styles", {})
    shown += [
        Column(
            (name, f"π* {star[name]:.2f}" if name in star else ""),
            lambda row, name=name: row["styles"][name],
            ".2f",
        )
        for name in rows[0].get("styles", ())
    ]
    shown.append(_metric("loss", ("loss", ""), ".4g"))
    shown.append(_metric("seconds", ("seconds", ""), ".1f"))
    return shown


def table(rows: Sequence[Record]) -> list[str]:
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

    def row(self, row: Record) -> None:
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


def compare_responses(reference: Sequence[Record], last: Sequence[Record]) -> list[str]:
    """Three prompts with a response before and after."""
    lines = []
    for before, after in list(zip(reference, last, strict=True))[:3]:
        lines += [f"prompt  {before['prompt']}", f"  μ     {before['responses'][0]}"]
        lines.append(f"  π_T   {after['responses'][0]}")
    return lines
