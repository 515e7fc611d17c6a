"""From the bytes of a file to a table of numbers with labels, whatever the numbers mean.

Failures raise `InputError` with the line or the row; `loading` puts the name of the file before it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from games.checks import Labels
from games.errors import InputError


@dataclass(frozen=True, eq=False)
class Sheet:
    """What a file holds: numbers, and the labels and the table of ties that may come with them."""

    table: np.ndarray
    row_labels: Labels = None
    column_labels: Labels = None
    ties: np.ndarray | None = None


def read(path: Path) -> Sheet:
    """The sheet in a .csv, .txt, .json, .npy or .npz file; raises InputError or OSError."""
    with path.open("rb") as file:
        ending = path.suffix.lower()
        if ending not in READERS:
            raise InputError(f"no format has the ending {ending!r}; use {', '.join(READERS)}")
        return READERS[ending](file)


def _read_csv(file: BinaryIO) -> Sheet:
    text = _text(file)
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((mark for mark in "\t;" if mark in first), ",")
    return _sheet_of_cells(_csv_lines(text, delimiter))


def _csv_lines(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield rows.line_num, cells
    except csv.Error as error:
        raise InputError(f"line {rows.line_num} is no line of a table: {error}") from None


def _read_txt(file: BinaryIO) -> Sheet:
    return _sheet_of_cells(_txt_lines(_text(file)))


def _txt_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(io.StringIO(text), 1):
        cells = line.partition("#")[0].split()
        if any("," in cell for cell in cells):
            mend = "name the file .csv, or write decimals with a point"
            raise InputError(f"line {number} has commas between white space; {mend}")
        if cells:
            yield number, cells


def _text(file: BinaryIO) -> str:
    try:
        text = file.read().decode("utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError("this is not text; save it as UTF-8, or an array of numpy as .npy")
    return text


def _sheet_of_cells(lines: Iterator[tuple[int, list[str]]]) -> Sheet:
    """Lines are (number from 1, cells). A header or a column of labels is known by having no number
    in it, or by an empty corner where the labels are whole numbers."""
    start, header = next(lines, (0, []))
    if not header:
        raise InputError("the file is empty; give rows of numbers")
    numbered = header[0] == "" and all(name.isdecimal() for name in header[1:])
    headed = numbered or not any(_is_number(cell) for cell in header)

    rows, firsts, at = [], [], []  # numbers beyond the first cell, first cells, line numbers
    for line, cells in lines if headed else chain([(start, header)], lines):
        if rows and len(cells) != rows[0].size + 1:
            raise InputError(
                f"line {line} has {len(cells)} cells and line {at[0]} has {rows[0].size + 1}; "
                "make all rows equally long"
            )
        rows.append(np.array([_number(cell, line, j) for j, cell in enumerate(cells[1:], 2)]))
        firsts.append(cells[0])
        at.append(line)
    if not rows:
        raise InputError("there is no row of numbers")

    labelled = rows[0].size > 0 and (numbered or not any(_is_number(cell) for cell in firsts))
    table = np.stack(rows)
    if not labelled:
        numbers = [_number(cell, line, 1) for cell, line in zip(firsts, at, strict=True)]
        table = np.column_stack([numbers, table])
    columns = table.shape[1]
    if headed and len(header) not in (columns, columns + labelled):
        raise InputError(f"line {start} has {len(header)} names for {columns} columns")
    return Sheet(
        table,
        row_labels=tuple(firsts) if labelled else None,
        column_labels=tuple(header[-columns:]) if headed else None,
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str, line: int, column: int) -> float:
    try:
        return float(cell)
    except ValueError:
        found = repr(cell[:20]) if cell else "an empty cell"
        mend = "; write decimals with a point" if "," in cell else ""
        raise InputError(f"line {line}, column {column}: {found} is not a number{mend}") from None


def _read_json(file: BinaryIO) -> Sheet:
    text = _text(file)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"this is not JSON: {error}") from None
    return _sheet_of_entries(content if isinstance(content, dict) else {"payoff": content})


def _read_numpy(file: BinaryIO) -> Sheet:
    try:
        content = np.load(file, allow_pickle=False)
        entries = {"payoff": content} if isinstance(content, np.ndarray) else dict(content)
    except Exception:  # for a damaged file numpy, zipfile and tokenize raise a dozen kinds
        mend = "pickled objects are never read; save an array of numbers by numpy.save"
        raise InputError(f"no plain array can be read from it; {mend}") from None
    return _sheet_of_entries(entries)


def _sheet_of_entries(entries: dict[str, Any]) -> Sheet:
    """The table is named payoff or wins, or is the only one that is neither ties nor labels."""
    labels = entries.get("labels")
    tables = [key for key in entries if key != "ties" and not key.endswith("labels")]
    named = [key for key in ("payoff", "wins") if key in tables] or tables
    if len(named) != 1:
        found = ", ".join(map(repr, tables)) or "no table"
        raise InputError(f"it holds {found}; name the one to read payoff or wins")
    return Sheet(
        _table(entries[named[0]], named[0]),
        row_labels=_labels(entries.get("row_labels", labels)),
        column_labels=_labels(entries.get("column_labels", labels)),
        ties=_table(entries["ties"], "ties") if "ties" in entries else None,
    )


def _table(rows: Any, name: str) -> np.ndarray:
    if isinstance(rows, np.ndarray):
        if rows.dtype.kind not in "biuf":
            raise InputError(f"{name} holds {rows.dtype}, not numbers")
        return rows.astype(np.float64, copy=False)
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{name} is not a list of rows that hold numbers")
    if not any(isinstance(row, list) for row in rows):
        rows = [rows]
    for i, row in enumerate(rows, 1):
        if not isinstance(row, list) or len(row) != len(rows[0]):
            raise InputError(f"row {i} of {name} is not a list as long as the first row")
        for j, entry in enumerate(row, 1):
            if isinstance(entry, bool) or not isinstance(entry, int | float):
                found = repr(str(entry)[:20])
                raise InputError(f"row {i}, column {j} of {name}: {found} is not a number")
    try:
        return np.array(rows, dtype=np.float64)
    except OverflowError:
        raise InputError(f"{name} holds a whole number too large for a float") from None


def _labels(labels: Any) -> Labels:
    if labels is None:
        return None
    if isinstance(labels, np.ndarray):
        labels = labels.ravel().tolist()
    if not isinstance(labels, list):
        raise InputError("labels must be a list")
    return tuple(str(label) for label in labels)


READERS = {
    ".csv": _read_csv,
    ".txt": _read_txt,
    ".json": _read_json,
    ".npy": _read_numpy,
    ".npz": _read_numpy,
}
