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
    games = np.arange(batch)
    for _ in range(8 * (m + n)):
        column = tableau[m, :n].argmin(axis=0)
        here = np.arange(len(games))
        done = tableau[m, column, here] >= -PIVOT
        if done.any():
            # A basic weight is worth its row's constant, a slack outside its column's price.
            values = np.concatenate([tableau[:m, n], tableau[m, :n]])
            outside = np.arange(m + n)[:, None] >= m
            kept = np.where((labels < m) == outside, values, 0.0)
            ends[labels[:, done], games[done]] = kept[:, done]
            left = ~done
            if not left.any():
                break
            tableau, labels, column = (pick(a, left) for a in (tableau, labels, column))
            games, here = games[left], here[: left.sum()]
        entering = np.take_along_axis(tableau, column[None, None], axis=1)[:, 0]
        with np.errstate(divide="ignore"):
            ratios = tableau[:m, n] / np.maximum(entering[:m], 0.0)
        row = np.where(entering[:m] > PIVOT, ratios, np.inf).argmin(axis=0)
        pivot = entering[row, here]
        leaving = np.take_along_axis(tableau, row[None, None], axis=0)[0] / pivot
        # The entries of the pivot's own row and column are made up for, not set apart.
        leaving[column, here] = 1 + 1 / pivot
        entering[row, here] = pivot - 1
        tableau -= entering[:, None] * leaving
        labels[row, here], labels[m + column, here] = labels[m + column, here], labels[row, here]
    x, y = ends[:m], ends[m:]
    return x / x.sum(axis=0), y / y.sum(axis=0)
