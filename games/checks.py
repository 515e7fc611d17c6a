"""Validation of payoff tables.

Tables are processed in blocks, so that a check allocates about 1 MiB regardless of n. A failed
check raises `InputError` with the position of the entry: 1-based row and column, or labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from games.errors import InputError

Labels = tuple[str, ...] | None
BLOCK = 1 << 16  # entries per block
LARGEST = np.finfo(np.float64).max


def as_table(entries: ArrayLike) -> np.ndarray:
    """(..., m, n) as float64 in C order; copies only if dtype or order differ."""
    try:
        if np.iscomplexobj(entries):
            raise TypeError
        table = np.asarray(entries, dtype=np.float64, order="C")
    except (TypeError, ValueError, OverflowError):
        raise InputError("the table must have rows of equal length, of real numbers") from None
    if table.size == 0:
        raise InputError("the table is empty")
    if table.ndim < 2:
        raise InputError(f"the table has shape {table.shape}; at least 2 dimensions are needed")
    return table


def as_square(entries: ArrayLike, kind: str) -> np.ndarray:
    """Like `as_table`, and square: (..., n, n)."""
    table = as_table(entries)
    m, n = table.shape[-2:]
    if m != n:
        raise InputError(f"the table is {m} x {n}; {kind} needs a square table")
    return table


def with_diagonal(table: np.ndarray, value: float) -> np.ndarray:
    """(..., n, n): the table, with `value` on the diagonal if that is all NaN."""
    if table.ndim < 2 or table.shape[-1] != table.shape[-2]:
        return table
    diagonal = np.diagonal(table, axis1=-2, axis2=-1)
    if not diagonal.size or not np.isnan(diagonal).all():
        return table
    return np.where(np.eye(table.shape[-1], dtype=bool), value, table)


def as_labels(labels: Sequence[str] | None, count: int) -> Labels:
    """The labels as a tuple of strings. Raises InputError unless there are `count` of them."""
    if labels is None:
        return None
    if len(labels) != count:
        raise InputError(f"{len(labels)} labels for {count} actions; give one label per action")
    texts = tuple(str(label) for label in labels)
    for text in texts:
        if any("\ud800" <= mark <= "\udfff" for mark in text):
            raise InputError(f"the label {text[:20]!a} contains an unpaired surrogate; remove it")
    return texts


def check_entries(
    table: np.ndarray,
    row_labels: Labels,
    column_labels: Labels,
    low: float = -LARGEST,
    high: float = LARGEST,
    rule: str = "entries must be finite numbers",
) -> None:
    """Raises InputError if an entry is NaN or outside [low, high]."""
    flat = table.reshape(-1, *table.shape[-2:])
    for games, rows in _blocks(flat):
        block = flat[games, rows]
        wrong = ~((block >= low) & (block <= high))
        if wrong.any():
            place = _place(table, games, rows, wrong)
            entry = f"{where(place, row_labels, column_labels)} is {table[place]:.9g}"
            raise InputError(f"{entry}; {rule}")


def check_pairs(
    table: np.ndarray, labels: Labels, total: float, tolerance: float, rule: str
) -> None:
    """Raises InputError, naming the worst pair, unless table + tableᵀ = total to the tolerance."""
    flat = table.reshape(-1, *table.shape[-2:])
    worst, place = tolerance, None
    for games, rows in _blocks(flat):
        miss = np.abs(_pair_sums(flat, games, rows) - total)
        if miss.max() > worst:
            worst, place = miss.max(), _place(table, games, rows, miss)
    if place is None:
        return
    *batch, i, j = place
    entry = f"{where(place, labels, labels)} is {table[place]:.9g}"
    if i == j:
        raise InputError(f"{entry}; entries on the diagonal must be {total / 2:g}")
    mirror = f"{where((j, i), labels, labels)} is {table[*batch, j, i]:.9g}"
    raise InputError(f"{entry} and {mirror}; the two must {rule}")


def symmetrize(table: np.ndarray, total: float) -> np.ndarray:
    """Make table + tableᵀ = total exact, for a total of 0 or 1.

    Pairs whose floating-point sum already equals the total are left unchanged. Returns the table
    itself if this holds for all pairs, otherwise a new array.
    """
    flat = table.reshape(-1, *table.shape[-2:])
    if all((_pair_sums(flat, *block) == total).all() for block in _blocks(flat)):
        return table
    result = np.empty_like(flat)
    for games, rows in _blocks(flat):
        here, there = flat[games, rows], _mirrored(flat, games, rows)
        fitted = total / 2 + (here / 2 - there / 2)
        result[games, rows] = np.where(_pair_sums(flat, games, rows) == total, here, fitted)
    return result.reshape(table.shape)


def refuse(wrong: np.ndarray, labels: Labels, rule: str) -> None:
    """Raises InputError with the position of the first true entry of (..., n, n), if any."""
    if wrong.any():
        place = tuple(int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape))
        raise InputError(f"{where(place, labels, labels)}: {rule}")


def where(place: tuple[int, ...], row_labels: Labels, column_labels: Labels) -> str:
    """Position in words: "row 1, column 2", "row 'A', column 'B'" or "game 3, row 1, column 2"."""
    *batch, row, column = place
    game = f"game {', '.join(str(index + 1) for index in batch)}, " if batch else ""
    row_name = repr(row_labels[row]) if row_labels else row + 1
    column_name = repr(column_labels[column]) if column_labels else column + 1
    return f"{game}row {row_name}, column {column_name}"


def _blocks(flat: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Slices of (B, m, n): several games, or some rows of one large game."""
    count, m, n = flat.shape
    games, rows = max(1, BLOCK // (m * n)), max(1, BLOCK // n)
    for game in range(0, count, games):
        for row in range(0, m, rows):
            yield slice(game, game + games), slice(row, row + rows)


def _mirrored(flat: np.ndarray, games: slice, rows: slice) -> np.ndarray:
    return flat[games, :, rows].swapaxes(-1, -2)


def _pair_sums(flat: np.ndarray, games: slice, rows: slice) -> np.ndarray:
    with np.errstate(over="ignore"):  # an infinite sum fails the check as well
        return flat[games, rows] + _mirrored(flat, games, rows)


def _place(table: np.ndarray, games: slice, rows: slice, block: np.ndarray) -> tuple[int, ...]:
    """Index into the table of the largest entry of a block."""
    game, row, column = np.unravel_index(block.argmax(), block.shape)
    batch = np.unravel_index(games.start + game, table.shape[:-2]) if table.ndim > 2 else ()
    return *(int(index) for index in batch), int(rows.start + row), int(column)
