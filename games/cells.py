"""Tables in text files: which cells are labels and which are numbers.

A header row and a column of row labels are optional. They are recognized by containing no numbers,
by an empty corner cell, or by whole numbers where the shape leaves no other reading. A table that
can be read in two ways is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np

from games.checks import Labels
from games.errors import InputError
from games.sheet import Sheet

Cells = list[tuple[int, list[str]]]  # line number from 1, cells

# Usual names of a column of row labels.
INDEX_NAMES = frozenset(["", "unnamed", "id", "idx", "index", "no", "nr", "step", "checkpoint"]) | {
    name + ending
    for name in ("name", "label", "row", "agent", "model", "player", "team", "action", "policy")
    for ending in ("", "s")
}
MISSING = frozenset(["", "-", "–", "—", "na", "n/a", "nan", "null", "none"])
MATCH_NAMES = frozenset(["winner", "outcome", "result", "model_a", "model_b"])


def sheet_of_cells(rows: Cells, square: bool) -> Sheet:
    """The sheet of a text file; `square` as in `files.read`. Raises InputError."""
    if not rows:
        raise InputError("the file is empty; it must contain rows of numbers")
    layout = _Layout.of(rows, square)
    body = rows[1:] if layout.header else rows
    if not body:
        raise InputError("no row of numbers")
    _refuse_matches(rows, body)
    line, first = body[0]
    for other, cells in body[1:]:
        if len(cells) != len(first):
            raise InputError(
                f"line {other} has {len(cells)} cells and line {line} has {len(first)}; "
                "all rows must have the same length"
            )
    names, columns = rows[0][1], len(first) - layout.index
    if layout.header and len(names) not in (columns, columns + layout.index):
        raise InputError(f"line {rows[0][0]} has {len(names)} names for {columns} columns")
    column_labels = tuple(names[-columns:]) if layout.header else None
    row_labels = tuple(cells[0] for _, cells in body) if layout.index else None
    if row_labels and _count_up(row_labels) and not _count_up(column_labels or ("0", "1")):
        row_labels = None  # the default index of a data frame
    if row_labels and not layout.header and _count_up(row_labels):
        row_labels = None
    return Sheet(_numbers(body, layout.index), row_labels, column_labels)


@dataclass(frozen=True)
class _Layout:
    """Whether the first row is a header, and how many first columns are an index (row labels)."""

    header: bool
    index: int

    @classmethod
    def of(cls, rows: Cells, square: bool) -> _Layout:
        first = rows[0][1]
        rest = [cells for _, cells in rows[1:]]
        longer = bool(rest) and all(len(cells) == len(first) + 1 for cells in rest)
        named = not any(map(_is_number, first))
        # ",100,200", or "step,100,200" above rows that begin with a number
        numbered = len(first) > 1 and _all_whole(first[1:]) and not _is_number(first[0])
        below = rest != [] and all(_is_number(row[0]) for row in rest)
        numbered &= first[0] == "" or (below and first[0].casefold() not in MISSING)
        if named or numbered or (longer and _count_up(first)):
            index = int(cls._indexed(first, rest, square, longer))
            while index and _is_second_index(first, rest, index):
                index += 1
            return cls(True, index)
        if _is_header_of_numbers(first, rest, square):
            return cls(True, 0)
        return cls(False, int(cls._indexed(None, [first, *rest], square, False)))

    @staticmethod
    def _indexed(header: list[str] | None, body: list[list[str]], square: bool, longer: bool):
        """Whether the first column of the body is an index."""
        if not body or any(len(cells) < 2 for cells in body):
            return False
        firsts = [cells[0] for cells in body]
        corner = header[0].casefold() if header else None
        if longer or (not any(map(_is_number, firsts)) and "" not in firsts):
            return True
        if corner is not None and len(header or ()) == len(body[0]):
            if corner.partition(":")[0].strip(" .#") in INDEX_NAMES:  # pandas: "Unnamed: 0"
                return True
            if square and len(body[0]) == len(body) + 1 and _all_whole(firsts):
                return True
        if square:
            return len(body[0]) == len(body) + 1 and _count_up(firsts)
        if _is_ambiguous(firsts, (cell for cells in body for cell in cells[1:])):
            column = f"column {header[0]!r}" if header else "the first column"
            raise InputError(
                f"{column} ({_shown(firsts)}) could be an index or numbers of the table; delete it "
                "if it is an index, or write its numbers with a decimal point"
            )
        return False


def _is_second_index(header: list[str], body: list[list[str]], column: int) -> bool:
    """Whether the column is an index that a data frame wrote twice."""
    if not body or len(header) != len(body[0]) or column >= len(header) - 1:
        return False
    unnamed = header[column] == "" or header[column].casefold().startswith("unnamed")
    return unnamed and _count_up([cells[column] for cells in body if column < len(cells)])


def _is_header_of_numbers(first: list[str], rest: list[list[str]], square: bool) -> bool:
    """Whether a first row of whole numbers is a header; raises InputError if it could be either."""
    if not rest or len(first) < 2 or not _all_whole(first):
        return False
    if square:
        extra = len(rest) == len(first) == len(rest[0])
        return extra and (_count_up(first) or not any(map(_is_whole, chain(*rest))))
    if _is_ambiguous(first, chain(*rest)):
        raise InputError(
            f"the first row ({_shown(first)}) could be a header or numbers of the table; delete it "
            "if it is a header, or write its numbers with a decimal point"
        )
    return False


def _is_ambiguous(labels: list[str], others: Iterable[str]) -> bool:
    """Whether whole numbers that count up from 0 or 1 could be labels of the other numbers."""
    if len(labels) < 2 or not _count_up(labels):
        return False
    return not any(map(_is_whole, others)) or (len(labels) > 2 and labels[0] == "0")


def _refuse_matches(rows: Cells, body: Cells) -> None:
    line, first = body[0]
    names = {name.casefold() for name in rows[0][1]}
    texts = [cell for cell in first[:2] if not (_is_number(cell) or cell.casefold() in MISSING)]
    if len(texts) == 2 or names & MATCH_NAMES:
        raise InputError(
            f"line {line} looks like a match ({_shown(first)}); a list of matches is not "
            "supported here: count the wins in a square table, one row and column per player"
        )


def _numbers(body: Cells, index: int) -> np.ndarray:
    """The table of numbers; entries on the diagonal are NaN if all of them are missing."""
    missing = [
        (i, j)
        for i, (_, cells) in enumerate(body)
        for j, cell in enumerate(cells[index:])
        if len(cell) < 5 and cell.casefold() in MISSING
    ]
    _refuse_triangle(missing, len(body), len(body[0][1]) - index)
    diagonal = missing == [(i, i) for i in range(len(body))]
    rows = []
    for i, (line, cells) in enumerate(body):
        numbers = [
            np.nan if diagonal and i == j - index else _number(cell, line, j + 1)
            for j, cell in enumerate(cells)
            if j >= index
        ]
        rows.append(np.array(numbers))
    return np.stack(rows)


def _refuse_triangle(missing: list[tuple[int, int]], m: int, n: int) -> None:
    off_diagonal = [place for place in missing if place[0] != place[1]]
    if m != n or n < 3 or not off_diagonal:
        return
    for side, sign in (("lower", 1), ("upper", -1)):
        triangle = [(i, j) for i in range(m) for j in range(n) if sign * (i - j) > 0]
        if off_diagonal == triangle:
            raise InputError(f"the {side} triangle of the table is missing; fill it in")


def _number(cell: str, line: int, column: int) -> float:
    try:
        return float(cell[:-1]) / 100 if cell.endswith("%") else float(cell)
    except ValueError:
        found = repr(cell[:20]) if cell else "an empty cell"
        fix = "; use decimal points" if "," in cell else ""
        raise InputError(f"line {line}, column {column}: {found} is not a number{fix}") from None


def _is_number(cell: str) -> bool:
    """Whether it is a number, or would be with a decimal point in place of a comma."""
    try:
        float(cell.removesuffix("%").replace(",", ".", 1))
    except ValueError:
        return False
    return True


def _is_whole(cell: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]+", cell) is not None


def _all_whole(cells: list[str]) -> bool:
    """Whether the cells are different whole numbers, as in a header or index."""
    return all(map(_is_whole, cells)) and len(set(cells)) == len(cells)


def _count_up(cells: list[str] | Labels) -> bool:
    """Whether the cells are 0, 1, 2, … or 1, 2, 3, …"""
    return any(
        list(cells or ()) == [str(i) for i in range(start, start + len(cells or ()))]
        for start in (0, 1)
    )


def _shown(cells: list[str]) -> str:
    shown = ", ".join(cell[:20] for cell in cells[:4])
    return f"{shown}, …" if len(cells) > 4 else shown
