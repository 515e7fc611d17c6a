"""The simplex method on many small zero-sum games at once.

With payoffs A > 0 the linear program max Σy subject to A y ≤ 1, y ≥ 0 starts feasible at y = 0,
and its dual is the other player's: both policies are read off the last tableau, up to their sums
(Dantzig 1951). The tableau is the condensed one, (m + 1, n + 1): a pivot exchanges one basic and
one other variable in place.
"""

from __future__ import annotations

import numpy as np

from .skew import pick

PIVOT = 1e-11  # what counts as positive in a tableau of entries of order 1


def simplex(payoff: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m, n, B) > 0 -> (m, B), (n, B): both players' policies; NaN where it does not end."""
    m, n, batch = payoff.shape
    tableau = np.ones((m + 1, n + 1, batch))
    tableau[:m, :n] = payoff
    tableau[m, :n] = -1.0
    tableau[m, n] = 0.0
    # Whose variable stands at each row and column: row i's slack is i, column j's weight m + j.
    labels = np.repeat(np.arange(m + n)[:, None], batch, axis=1)
    ends = np.full((m + n, batch), np.nan)
    games, here = np.arange(batch), np.arange(batch)
    for _ in range(8 * (m + n)):
        column = tableau[m, :n].argmin(axis=0)
        left = tableau[m, column, here] < -PIVOT
        if not left.all():
            done = ~left
            # A basic weight is worth its row's constant, a slack outside its column's price.
            values = np.concatenate([tableau[:m, n, done], tableau[m, :n, done].T])
            outside = np.arange(m + n)[:, None] >= m
            kept = np.where((labels[:, done] < m) == outside, values, 0.0)
            np.put_along_axis(values, labels[:, done], kept, axis=0)
            ends[:, games[done]] = values
            tableau, labels, column = (pick(a, left) for a in (tableau, labels, column))
            games, here = games[left], here[: left.sum()]
            if not len(games):
                break
        entering = np.take_along_axis(tableau, column[None, None], axis=1)[:, 0]
        ratios = np.full_like(tableau[:m, n], np.inf)
        np.divide(tableau[:m, n], entering[:m], out=ratios, where=entering[:m] > PIVOT)
        row = ratios.argmin(axis=0)
        pivot = entering[row, here]
        leaving = np.take_along_axis(tableau, row[None, None], axis=0)[0] / pivot
        leaving[column, here] = 1 / pivot
        entering[row, here] = -1.0
        np.put_along_axis(tableau, row[None, None], 0.0, axis=0)
        np.put_along_axis(tableau, column[None, None], 0.0, axis=1)
        tableau -= entering[:, None] * leaving
        labels[row, here], labels[m + column, here] = labels[m + column, here], labels[row, here]
    x, y = ends[:m], ends[m:]
    return x / x.sum(axis=0), y / y.sum(axis=0)
