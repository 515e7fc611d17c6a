"""Games given by a table of payoffs.

Payoffs are stored as read-only float64 arrays in C order; an array that already has this dtype and
order is not copied. Leading axes `...` are batch axes: independent games. An invalid table raises
`InputError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from games.checks import (
    Labels,
    as_labels,
    as_square,
    as_table,
    check_entries,
    check_pairs,
    symmetrize,
)

TOLERANCE = 1e-6  # allowed error in P + Pᵀ = 1 and A = -Aᵀ; float32 rounding is below it


@dataclass(frozen=True, eq=False)
class SymmetricGame(ABC):
    """Base class of two-player games in which both players have the same n actions.

    The payoff (..., n, n) and its transpose add up to twice `value`, which is each player's payoff
    in equilibrium. `labels` has one entry per action.
    """

    payoff: np.ndarray = field(repr=False)
    labels: Labels = None
    name: str = ""

    kind: ClassVar[str]
    value: ClassVar[float]

    def __post_init__(self) -> None:
        payoff = as_square(self.payoff, self.kind)
        labels = as_labels(self.labels, payoff.shape[-1])
        self._check(payoff, labels)
        object.__setattr__(self, "payoff", _read_only(symmetrize(payoff, 2 * self.value)))
        object.__setattr__(self, "labels", labels)

    @staticmethod
    @abstractmethod
    def _check(payoff: np.ndarray, labels: Labels) -> None:
        """Raises InputError if the table is not a valid payoff of this kind of game."""

    @property
    def n(self) -> int:
        return self.payoff.shape[-1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.payoff.shape[:-2]


class PreferenceGame(SymmetricGame):
    """P(row ≻ column), (..., n, n), in [0, 1], with P + Pᵀ = 1 to 1e-6 (stored exactly)."""

    kind = "preference"
    value = 0.5

    @staticmethod
    def _check(payoff: np.ndarray, labels: Labels) -> None:
        check_entries(payoff, labels, labels, 0, 1, "a preference must be between 0 and 1")
        check_pairs(payoff, labels, 1.0, TOLERANCE, "add up to 1")


class SkewGame(SymmetricGame):
    """Row player's payoff, (..., n, n), in any unit, with A = -Aᵀ to 1e-6 of its largest entry."""

    kind = "skew"
    value = 0.0

    @staticmethod
    def _check(payoff: np.ndarray, labels: Labels) -> None:
        check_entries(payoff, labels, labels)
        scale = max(payoff.max(), -payoff.min())
        check_pairs(payoff, labels, 0.0, TOLERANCE * scale, "be the negatives of each other")


@dataclass(frozen=True, eq=False)
class MatrixGame:
    """Zero-sum game: the row player's payoff, (..., m, n), in any unit."""

    payoff: np.ndarray = field(repr=False)
    row_labels: Labels = None
    column_labels: Labels = None
    name: str = ""

    kind: ClassVar[str] = "zero_sum"

    def __post_init__(self) -> None:
        payoff = as_table(self.payoff)
        row_labels = as_labels(self.row_labels, payoff.shape[-2])
        column_labels = as_labels(self.column_labels, payoff.shape[-1])
        check_entries(payoff, row_labels, column_labels)
        object.__setattr__(self, "payoff", _read_only(payoff))
        object.__setattr__(self, "row_labels", row_labels)
        object.__setattr__(self, "column_labels", column_labels)

    @property
    def m(self) -> int:
        return self.payoff.shape[-2]

    @property
    def n(self) -> int:
        return self.payoff.shape[-1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.payoff.shape[:-2]


def _read_only(table: np.ndarray) -> np.ndarray:
    view = table.view()  # leaves the caller's own array writeable
    view.flags.writeable = False
    return view
