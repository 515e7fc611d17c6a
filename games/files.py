"""Reads tables of numbers with labels from files, regardless of what the numbers mean.

Errors raise `InputError` with the line or row; `loading` prefixes the name of the file.
"""

from __future__ import annotations

import csv
import io
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from games.cells import Cells, sheet_of_cells
from games.checks import Labels
from games.errors import InputError
from games.sheet import Sheet

# Words that name a table in .json and .npz files, for instance "draws" in "num_draws".
WORDS = {
    "wins": {"win", "wins", "won", "victory", "victories", "beats"},
    "ties": {"tie", "ties", "tied", "draw", "draws", "drawn", "stalemate", "stalemates"},
    "losses": {"loss", "losses", "lost", "defeat", "defeats"},
    "payoff": {"payoff", "payoffs"},
}
SHARES = {
    "rate",
    "rates",
    "ratio",
    "ratios",
    "share",
    "shares",
    "prob",
    "probability",
    "percent",
    "pct",
}
MOST_DIGITS = 320  # of a whole number; no float has more


def read(path: Path, square: bool = False) -> Sheet:
    """Reads a .csv, .txt, .json, .npy or .npz file. Raises InputError or OSError.

    `square`: whether the table must be square, which settles whether an extra first row or column
    of whole numbers is data.
    """
    # A pipe or device could block or never end.
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError("not a regular file; save the table in a file")
    with path.open("rb") as file:
        ending = path.suffix.lower()
        if ending == ".csv":
            return sheet_of_cells(_csv_cells(_text(file)), square)
        if ending == ".txt":
            return sheet_of_cells(list(_txt_cells(_text(file))), square)
        if ending == ".json":
            return _sheet_of_entries(_json_entries(_text(file)))
        if ending in (".npy", ".npz"):
            return _sheet_of_entries(_numpy_entries(file))
    endings = ".csv, .txt, .json, .npy, .npz"
    raise InputError(f"unknown file extension {ending!r}; use {endings}")


def _text(file: BinaryIO) -> str:
    try:
        text = file.read().decode("utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError("not a text file; save it as UTF-8, or a NumPy array as .npy")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _csv_cells(text: str) -> Cells:
    rows = csv.reader(
        io.StringIO(text, newline=""), delimiter=_delimiter(text), skipinitialspace=True
    )
    found = []
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if any(cells):
                found.append((rows.line_num, cells))
    except csv.Error as error:
        raise InputError(f"line {rows.line_num} could not be parsed: {error}") from None
    return found


def _delimiter(text: str) -> str:
    """Tab, semicolon or comma: the first that occurs equally often on all lines, outside quotes.

    If none does, the first that occurs on the first line.
    """
    unquoted = re.sub(r'"(?:[^"]|"")*"', '""', text)
    lines = [line for line in unquoted.split("\n") if line.strip()]
    for mark in "\t;,":
        counts = {line.count(mark) for line in lines}
        if len(counts) == 1 and counts != {0}:
            return mark
    return next((mark for mark in "\t;" if lines and mark in lines[0]), ",")


def _txt_cells(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        cells = line.partition("#")[0].split()
        if any("," in cell for cell in cells):
            fix = "rename the file to .csv, or use decimal points"
            raise InputError(f"line {number} has commas; {fix}")
        if cells:
            yield number, cells


def _json_entries(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text, parse_int=_integer, object_pairs_hook=_without_duplicates)
    except InputError:
        raise
    except RecursionError:
        raise InputError("invalid JSON: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"invalid JSON: {error}") from None
    return content if isinstance(content, dict) else {"payoff": content}


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise InputError(f"a whole number of {len(digits)} digits is too large for a float")
    return int(digits)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"the key {twice[:20]!r} occurs twice; remove one of them")
    return entries


def _numpy_entries(file: BinaryIO) -> dict[str, Any]:
    try:
        content = np.load(file, allow_pickle=False)
        return {"payoff": content} if isinstance(content, np.ndarray) else dict(content)
    except Exception:  # numpy, zipfile and tokenize raise many types for damaged files
        fix = "pickled objects are not supported; save a numeric array with numpy.save"
        raise InputError(f"not a readable NumPy array; {fix}") from None


def _sheet_of_entries(entries: dict[str, Any]) -> Sheet:
    """The table is under payoff or wins, or is the only entry besides ties, losses and labels.

    Capital letters and words around the key do not matter: "Draws" and "num_draws" are ties.
    """
    labels: dict[str, Labels] = {}
    roles: dict[str, list[str]] = {"payoff": [], "wins": [], "ties": [], "losses": [], "": []}
    for key, value in entries.items():
        name = key.strip().casefold()
        if name in ("labels", "row_labels", "column_labels"):
            labels[name] = _labels(value)
        elif not name.endswith("labels"):
            roles[_role(key)].append(key)
    for role in ("wins", "ties", "losses"):
        if len(roles[role]) > 1:
            first, second = roles[role][:2]
            raise InputError(f"both {first!r} and {second!r} hold {role}; remove one of them")
    others = [key for key in roles[""] if _is_table(entries[key])]
    named = [*roles["payoff"], *roles["wins"]] or others or roles[""]
    if len(named) != 1:
        found = ", ".join(repr(key[:20]) for key in (named or roles["losses"])) or "no table"
        raise InputError(f"contains {found}; the table must be under the key payoff or wins")
    for key in [*roles["ties"], *roles["losses"]]:
        if bool(SHARES & _words(key)) != bool(SHARES & _words(named[0])):
            raise InputError(f"{named[0]!r} and {key!r} must both be counts, or both be shares")
    table = _table(entries[named[0]], named[0])
    common = labels.get("labels")
    ties, losses = (
        _table(entries[key], key) if key else None
        for key in (next(iter(roles[role]), None) for role in ("ties", "losses"))
    )
    return Sheet(
        table,
        row_labels=labels.get("row_labels", common),
        column_labels=labels.get("column_labels", common),
        ties=ties,
        losses=losses,
        others=tuple(key for key in others if key != named[0]),
    )


def _role(key: str) -> str:
    """payoff, wins, ties or losses if a word of the key names it, otherwise the empty string."""
    return next((role for role, known in WORDS.items() if known & _words(key)), "")


def _words(key: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", key).casefold()))


def _is_table(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim >= 2
    return isinstance(value, list) and any(isinstance(row, list) for row in value)


def _table(rows: Any, name: str) -> np.ndarray:
    if isinstance(rows, np.ndarray):
        if rows.dtype.kind not in "biuf":
            raise InputError(f"{name} has dtype {rows.dtype}; it must be numeric")
        return rows.astype(np.float64, copy=False)
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{name} must be a list of rows of numbers")
    if any(isinstance(row, dict) for row in rows):
        raise InputError(
            f"{name} holds records; a list of matches is not supported here: count the wins in a "
            "square table, one row and column per player"
        )
    if not any(isinstance(row, list) for row in rows):
        rows = [rows]
    for i, row in enumerate(rows, 1):
        if not isinstance(row, list) or len(row) != len(rows[0]):
            raise InputError(f"row {i} of {name} must be a list of the same length as row 1")
        for j, entry in enumerate(row, 1):
            missing = entry is None and i == j
            if isinstance(entry, bool) or not (missing or isinstance(entry, int | float)):
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
