"""Games given by a table of payoffs, and the checks that such a table must pass.

Payoffs are read-only, C-contiguous float64; an array that is so already is not copied. Leading
axes `...` hold independent games. What a table fails raises `InputError` with the place, in
1-based rows and columns or in labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from games.errors import InputError

TOLERANCE = 1e-6  # how far P + P^T = 1 or A = -A^T may be missed: sums in float32 pass
BLOCK = 1 << 16  # entries checked together: temporary arrays of half a MiB, whatever the n


@dataclass(frozen=True, eq=False)
class SymmetricGame:
    """A zero-sum game whose players share n actions: payoff + payoffᵀ = 2 value."""

    payoff: np.ndarray = field(repr=False)
    labels: Sequence[str] | None = None
    name: str = ""

    kind: ClassVar[str]
    value: ClassVar[float]  # what either player expects in equilibrium

    def __post_init__(self) -> None:
        payoff = _as_table(self.payoff)
        *_, m, n = payoff.shape
        if m != n:
            raise InputError(f"the payoff is {m} x {n}; a {self.kind} game needs a square one")
        labels = _as_labels(self.labels, n, "actions")
        _check_entries(payoff, labels, labels, unit_interval=self.kind == "preference")
        object.__setattr__(self, "payoff", _read_only(self._symmetric(payoff, labels)))
        object.__setattr__(self, "labels", labels)

    @property
    def n(self) -> int:
        return self.payoff.shape[-1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.payoff.shape[:-2]

    def _symmetric(self, payoff: np.ndarray, labels: tuple[str, ...] | None) -> np.ndarray:
        """The payoff with rounding mended; pairs of entries that fit exactly keep every bit."""
        tables = payoff.reshape(-1, *payoff.shape[-2:])
        scale = 1.0 if self.kind == "preference" else max(payoff.max(), -payoff.min())
        worst, place = 0.0, (0, 0, 0)
        for block in _blocks(tables):
            excess = np.abs(_excess(*_both_sides(tables, block), self.value))
            if excess.max() > worst:
                worst, place = excess.max(), _place(excess.argmax(), excess.shape, block)
        if worst > TOLERANCE * scale:
            raise InputError(self._unfair(payoff, place, labels))
        if worst == 0.0:
            return payoff
        mended = np.empty_like(tables)
        for block in _blocks(tables):
            here, there = _both_sides(tables, block)
            half = here / 2 - there / 2
            # the smaller of a pair is 1 - the larger, which is exact from 1/2 on
            low, high = 2 * self.value - (self.value - half), self.value + half
            fitted = np.where(half < 0, low, high)
            mended[block] = np.where(_excess(here, there, self.value) == 0, here, fitted)
        return mended.reshape(payoff.shape)

    def _unfair(self, payoff: np.ndarray, place: tuple[int, int, int], labels) -> str:
        game, i, j = place
        there = payoff.reshape(-1, self.n, self.n)[game, j, i]
        entry = _describe(payoff, place, labels, labels)
        if i == j:
            return f"{entry}, and must be {self.value:g}: no action beats itself"
        other = _where((), j, i, labels, labels)
        rule = "add up to 1" if self.kind == "preference" else "be each other's negative"
        return f"{entry}, and {other} is {there:.9g}; the two must {rule}"


class PreferenceGame(SymmetricGame):
    """P(row preferred to column), (..., n, n), in [0, 1] with P + Pᵀ = 1.

    P + Pᵀ = 1 is required to 1e-6 and then made exact. Raises InputError.
    """

    kind = "preference"
    value = 0.5


class SkewGame(SymmetricGame):
    """What the row player wins from the column player, (..., n, n), in any unit: A = -Aᵀ.

    A = -Aᵀ is required to 1e-6 of the largest entry and then made exact. Raises InputError.
    """

    kind = "skew"
    value = 0.0


@dataclass(frozen=True, eq=False)
class MatrixGame:
    """What the row player wins from the column player, (..., m, n), in any unit.

    Raises InputError for an empty table or an entry that is not finite.
    """

    payoff: np.ndarray = field(repr=False)
    row_labels: Sequence[str] | None = None
    column_labels: Sequence[str] | None = None
    name: str = ""

    kind: ClassVar[str] = "zero_sum"

    def __post_init__(self) -> None:
        payoff = _as_table(self.payoff)
        rows = _as_labels(self.row_labels, payoff.shape[-2], "rows")
        columns = _as_labels(self.column_labels, payoff.shape[-1], "columns")
        _check_entries(payoff, rows, columns, unit_interval=False)
        object.__setattr__(self, "payoff", _read_only(payoff))
        object.__setattr__(self, "row_labels", rows)
        object.__setattr__(self, "column_labels", columns)

    @property
    def m(self) -> int:
        return self.payoff.shape[-2]

    @property
    def n(self) -> int:
        return self.payoff.shape[-1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.payoff.shape[:-2]


def _as_table(payoff) -> np.ndarray:
    try:
        if np.iscomplexobj(payoff):
            raise TypeError("complex numbers")
        table = np.asarray(payoff, dtype=np.float64, order="C")
    except (TypeError, ValueError) as error:
        raise InputError(f"the payoff is not a table of real numbers: {error}") from None
    if table.ndim < 2:
        raise InputError(f"the payoff has shape {table.shape}; it needs rows and columns")
    if table.size == 0:
        raise InputError(f"the payoff is empty: its shape is {table.shape}")
    return table


def _as_labels(labels: Sequence[str] | None, count: int, what: str) -> tuple[str, ...] | None:
    if labels is None:
        return None
    if len(labels) != count:
        raise InputError(f"{len(labels)} labels for {count} {what}; give one each")
    return tuple(str(label) for label in labels)


def _read_only(table: np.ndarray) -> np.ndarray:
    view = table.view()  # the caller's own array stays as writeable as it was
    view.flags.writeable = False
    return view


def _check_entries(payoff: np.ndarray, row_labels, column_labels, unit_interval: bool) -> None:
    tables = payoff.reshape(-1, *payoff.shape[-2:])
    for block in _blocks(tables):
        entries = tables[block]
        wrong, rule = ~np.isfinite(entries), "every entry must be a finite number"
        if unit_interval and not wrong.any():
            wrong, rule = (entries < 0) | (entries > 1), "a preference lies between 0 and 1"
        if wrong.any():
            place = _place(wrong.argmax(), wrong.shape, block)
            raise InputError(f"{_describe(payoff, place, row_labels, column_labels)}; {rule}")


def _blocks(tables: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Cut (B, m, n) into slices of whole small games, or of rows of one large game."""
    count, m, n = tables.shape
    games, rows = max(1, BLOCK // (m * n)), max(1, BLOCK // n)
    for game in range(0, count, games):
        for row in range(0, m, rows):
            yield slice(game, game + games), slice(row, row + rows)


def _both_sides(tables: np.ndarray, block: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
    games, rows = block
    return tables[games, rows], tables[games, :, rows].swapaxes(-1, -2)


def _excess(here: np.ndarray, there: np.ndarray, value: float) -> np.ndarray:
    return here + there - 2 * value


def _place(flat: np.intp, shape: tuple[int, ...], block: tuple[slice, slice]):
    """(game, row, column) of a position inside a block."""
    game, row, column = (int(index) for index in np.unravel_index(flat, shape))
    return block[0].start + game, block[1].start + row, column


def _describe(payoff: np.ndarray, place: tuple[int, int, int], row_labels, column_labels) -> str:
    game, row, column = place
    batch = np.unravel_index(game, payoff.shape[:-2]) if payoff.ndim > 2 else ()
    entry = payoff[(*batch, row, column)]
    return f"{_where(batch, row, column, row_labels, column_labels)} is {entry:.9g}"


def _where(batch, row: int, column: int, row_labels, column_labels) -> str:
    game = f"game {', '.join(str(index + 1) for index in batch)}, " if len(batch) else ""
    row_name = repr(row_labels[row]) if row_labels else row + 1
    column_name = repr(column_labels[column]) if column_labels else column + 1
    return f"{game}row {row_name}, column {column_name}"
