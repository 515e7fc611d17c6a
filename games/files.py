"""Reads tables of numbers with labels from files, regardless of what the numbers mean.

Errors raise `InputError` with the line or row; `loading` prefixes the name of the file.
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
    """Contents of a file: a table, optional labels, and optional counts of ties."""

    table: np.ndarray
    row_labels: Labels = None
    column_labels: Labels = None
    ties: np.ndarray | None = None


def read(path: Path) -> Sheet:
    """Reads a .csv, .txt, .json, .npy or .npz file. Raises InputError or OSError."""
    with path.open("rb") as file:
        ending = path.suffix.lower()
        if ending not in READERS:
            raise InputError(f"unknown file extension {ending!r}; use {', '.join(READERS)}")
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
        raise InputError(f"line {rows.line_num} could not be parsed: {error}") from None


def _read_txt(file: BinaryIO) -> Sheet:
    return _sheet_of_cells(_txt_lines(_text(file)))


def _txt_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(io.StringIO(text), 1):
        cells = line.partition("#")[0].split()
        if any("," in cell for cell in cells):
            fix = "rename the file to .csv, or use decimal points"
            raise InputError(f"line {number} has commas; {fix}")
        if cells:
            yield number, cells


def _text(file: BinaryIO) -> str:
    try:
        text = file.read().decode("utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError("not a text file; save it as UTF-8, or a NumPy array as .npy")
    return text


def _sheet_of_cells(lines: Iterator[tuple[int, list[str]]]) -> Sheet:
    """Lines are (number from 1, cells). A header row or label column is recognized by containing no
    number, or by an empty corner cell if the labels are whole numbers."""
    start, header = next(lines, (0, []))
    if not header:
        raise InputError("the file is empty; it must contain rows of numbers")
    numbered = header[0] == "" and all(name.isdecimal() for name in header[1:])
    headed = numbered or not any(_is_number(cell) for cell in header)

    rows, firsts, at = [], [], []  # numbers beyond the first cell, first cells, line numbers
    for line, cells in lines if headed else chain([(start, header)], lines):
        if rows and len(cells) != rows[0].size + 1:
            raise InputError(
                f"line {line} has {len(cells)} cells and line {at[0]} has {rows[0].size + 1}; "
                "all rows must have the same length"
            )
        rows.append(np.array([_number(cell, line, j) for j, cell in enumerate(cells[1:], 2)]))
        firsts.append(cells[0])
        at.append(line)
    if not rows:
        raise InputError("no row of numbers")

    labeled = rows[0].size > 0 and (numbered or not any(_is_number(cell) for cell in firsts))
    table = np.stack(rows)
    if not labeled:
        numbers = [_number(cell, line, 1) for cell, line in zip(firsts, at, strict=True)]
        table = np.column_stack([numbers, table])
    columns = table.shape[1]
    if headed and len(header) not in (columns, columns + labeled):
        raise InputError(f"line {start} has {len(header)} names for {columns} columns")
    return Sheet(
        table,
        row_labels=tuple(firsts) if labeled else None,
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
        fix = "; use decimal points" if "," in cell else ""
        raise InputError(f"line {line}, column {column}: {found} is not a number{fix}") from None


def _read_json(file: BinaryIO) -> Sheet:
    text = _text(file)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"invalid JSON: {error}") from None
    return _sheet_of_entries(content if isinstance(content, dict) else {"payoff": content})


def _read_numpy(file: BinaryIO) -> Sheet:
    try:
        content = np.load(file, allow_pickle=False)
        entries = {"payoff": content} if isinstance(content, np.ndarray) else dict(content)
    except Exception:  # numpy, zipfile and tokenize raise many types for damaged files
        fix = "pickled objects are not supported; save a numeric array with numpy.save"
        raise InputError(f"not a readable NumPy array; {fix}") from None
    return _sheet_of_entries(entries)


def _sheet_of_entries(entries: dict[str, Any]) -> Sheet:
    """The table is under the key payoff or wins, or is the only entry besides ties and labels."""
    labels = entries.get("labels")
    tables = [key for key in entries if key != "ties" and not key.endswith("labels")]
    named = [key for key in ("payoff", "wins") if key in tables] or tables
    if len(named) != 1:
        found = ", ".join(map(repr, tables)) or "no table"
        raise InputError(f"contains {found}; the table must be under the key payoff or wins")
    return Sheet(
        _table(entries[named[0]], named[0]),
        row_labels=_labels(entries.get("row_labels", labels)),
        column_labels=_labels(entries.get("column_labels", labels)),
        ties=_table(entries["ties"], "ties") if "ties" in entries else None,
    )


def _table(rows: Any, name: str) -> np.ndarray:
    if isinstance(rows, np.ndarray):
        if rows.dtype.kind not in "biuf":
            raise InputError(f"{name} has dtype {rows.dtype}; it must be numeric")
        return rows.astype(np.float64, copy=False)
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{name} must be a list of rows of numbers")
    if not any(isinstance(row, list) for row in rows):
        rows = [rows]
    for i, row in enumerate(rows, 1):
        if not isinstance(row, list) or len(row) != len(rows[0]):
            raise InputError(f"row {i} of {name} must be a list of the same length as row 1")
        for j, entry in enumerate(row, 1):
            if isinstance(entry, bool) or not isinstance(entry, int | float):
                found = repr(str(entry)[:20])
                raise InputError(f"row {i}, column {j} of {name}: {found} is not a number")
    try:
        return np.array(rows, dtype=np.float64)
    except OverflowError:
        raise InputError(f"{name} contains a whole number too large for a float") from None


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
