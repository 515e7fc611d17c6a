"""Equilibria of small zero-sum games in exact arithmetic, for any range of payoffs.

Floating-point numbers are integers times a power of two, so a table of them is a table of integers
in a common unit. The simplex method runs in integers (fraction-free pivoting, Edmonds 1967) and
determines the whole optimal face. If it contains several equilibria, their analytic center is
computed in floating point.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

LARGEST = 64  # actions of both players together: about a second


def exact_equilibrium(payoff: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, bool]:
    """(m, n) -> (m,), (n,), value, unique: both policies, as `equilibrium` defines them.

    The policies are correctly rounded where the equilibrium is unique.
    """
    table = _integers(payoff)
    y, value, unique = _minimizer(table)
    if len(table) == len(table[0]) and all(
        table[i][j] == -table[j][i] for i in range(len(table)) for j in range(i + 1)
    ):
        return y, y, 0.0, unique
    x, _, also_unique = _minimizer([[-entry for entry in row] for row in zip(*table, strict=True)])
    return x, y, float(value * _unit(payoff)), unique and also_unique


def _unit(payoff: np.ndarray) -> Fraction:
    """The largest power of two of which every entry is a multiple."""
    return Fraction(1, max(float(entry).as_integer_ratio()[1] for entry in payoff.flat))


def _integers(payoff: np.ndarray) -> list[list[int]]:
    unit = _unit(payoff)
    return [[int(Fraction(float(entry)) / unit) for entry in row] for row in payoff]


def _minimizer(table: list[list[int]]) -> tuple[np.ndarray, Fraction, bool]:
    """The column player's policy (n,), the value, and whether the policy is the only one."""
    m, n = len(table), len(table[0])
    low = min(map(min, table))
    shift = 1 - low  # the linear program needs positive payoffs
    tableau = _Tableau([[entry + shift for entry in row] for row in table])
    tableau.maximize(tableau.cost, range(n))
    vertices, positive = _vertices(tableau)
    total = sum((vertices[0][label] for label in range(m, m + n)), Fraction(0))
    value = 1 / total - shift
    weights = [vertices[0][label] / total for label in range(m, m + n)]
    if len(vertices) == 1:
        return np.array([float(weight) for weight in weights]), value, True
    start, factors = _center(tableau, vertices, positive)
    inside = [float(start[label] / total) for label in range(m, m + n)]
    return np.array(inside) * factors[m:], value, False


@dataclass
class _Tableau:
    """max Σ y subject to A y + s = 1, y, s ≥ 0, in the variables s (labels 0…) and y (labels m…).

    Each basic variable is (last entry of its row − Σ entry · outside variable)/scale; the cost is
    negative at outside variables that increase the objective.
    """

    rows: list[list[int]]

    def __post_init__(self) -> None:
        m, n = len(self.rows), len(self.rows[0])
        self.rows = [[*row, 1] for row in self.rows]
        self.cost = [-1] * n + [0]
        self.scale = 1
        self.basic, self.outside = list(range(m)), list(range(m, m + n))

    def maximize(self, cost: list[int], columns, until_positive: bool = False) -> None:
        """Pivots until no entry of the cost in the columns is negative, or the objective is > 0."""
        pivots, many = 0, 4 * (len(self.rows) + len(cost))
        while True:
            negative = [column for column in columns if cost[column] < 0]
            if not negative or (until_positive and cost[-1] > 0):
                return
            # The steepest column is quick; the first by label (Bland 1977) cannot cycle.
            key = cost.__getitem__ if pivots < many else self.outside.__getitem__
            column = min(negative, key=key)
            row = min(
                (row for row in range(len(self.rows)) if self.rows[row][column] > 0),
                key=lambda row: (
                    Fraction(self.rows[row][-1], self.rows[row][column]),
                    self.basic[row],
                ),
            )
            self.pivot(row, column, cost)
            pivots += 1

    def pivot(self, row: int, column: int, *costs: list[int]) -> None:
        """Exchanges a basic and an outside variable; updates the costs as well."""
        pivotal, scale = self.rows[row], self.scale
        pivot = pivotal[column]
        sign = 1 if pivot > 0 else -1
        others = [other for i, other in enumerate(self.rows) if i != row]
        for other in [*others, *{id(cost): cost for cost in (self.cost, *costs)}.values()]:
            factor = other[column]
            for j, entry in enumerate(pivotal):
                other[j] = sign * (other[j] * pivot - factor * entry) // scale
            other[column] = -sign * factor
        for j, entry in enumerate(pivotal):
            pivotal[j] = sign * entry
        pivotal[column] = sign * scale
        self.scale = sign * pivot
        self.basic[row], self.outside[column] = self.outside[column], self.basic[row]

    def values(self) -> list[Fraction]:
        """The value of each variable, by label."""
        values = [Fraction(0)] * (len(self.basic) + len(self.outside))
        for label, row in zip(self.basic, self.rows, strict=True):
            values[label] = Fraction(row[-1], self.scale)
        return values

    @property
    def face(self) -> list[int]:
        """The columns that may change on the optimal face."""
        return [column for column in range(len(self.outside)) if self.cost[column] == 0]


def _vertices(tableau: _Tableau) -> tuple[list[list[Fraction]], set[int]]:
    """Vertices of the optimal face whose mean is inside it, and the labels of what is > 0 there."""
    vertices = [tableau.values()]
    positive = {label for label, value in enumerate(vertices[0]) if value > 0}
    while True:
        # Maximize the sum of all variables that are 0 in every vertex so far.
        face, cost = tableau.face, [0] * len(tableau.cost)
        for label, row in zip(tableau.basic, tableau.rows, strict=True):
            if label not in positive:
                cost = [a + b for a, b in zip(cost, row, strict=True)]
        cost[-1] = 0
        for column in face:
            if tableau.outside[column] not in positive:
                cost[column] -= tableau.scale
        tableau.maximize(cost, face, until_positive=True)
        if cost[-1] <= 0:
            return vertices, positive
        vertices.append(tableau.values())
        positive |= {label for label, value in enumerate(vertices[-1]) if value > 0}


def _center(
    tableau: _Tableau, vertices: list[list[Fraction]], positive: set[int]
) -> tuple[list[Fraction], np.ndarray]:
    """Variables inside the face, and factors (m + n,) to those at its analytic center.

    The center maximizes Σ log of the variables that are not 0 on all of the face. Where the range
    of the payoffs exceeds that of floats, the factors are 1: the mean of the vertices.
    """
    for row, label in enumerate(tableau.basic):
        if label not in positive:  # 0 on all of the face: exchange it for a variable that is not
            columns = [c for c in tableau.face if tableau.outside[c] in positive]
            column = next((c for c in columns if tableau.rows[row][c] != 0), None)
            if column is not None:
                tableau.pivot(row, column)
    free = [column for column in tableau.face if tableau.outside[column] in positive]
    start = [sum(each, Fraction(0)) / len(vertices) for each in zip(*vertices, strict=True)]
    inside = sorted(positive)
    # Relative changes of all variables with the free ones, which spares the range of floats.
    changes = np.zeros((len(start), len(free)))
    for k, column in enumerate(free):
        own = tableau.outside[column]
        changes[own, k] = 1.0
        for label, row in zip(tableau.basic, tableau.rows, strict=True):
            if label in positive:
                change = Fraction(-row[column], tableau.scale) * start[own] / start[label]
                try:
                    changes[label, k] = float(change)
                except OverflowError:
                    return start, np.ones(len(start))
    factors = np.ones(len(start))
    # Newton's method, damped as self-concordance asks.
    for _ in range(200):
        relative = changes[inside] / factors[inside, None]
        scale = np.abs(relative).max(axis=0)
        step = np.linalg.lstsq(relative / scale, np.ones(len(inside)), rcond=None)[0] / scale
        decrement = np.linalg.norm(relative @ step)
        factors = factors + changes @ step / (1 + decrement if decrement > 0.1 else 1)
        if decrement < 1e-9:
            break
    return start, factors
