"""Preference games from win counts."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from games.checks import Labels, as_labels, as_square, check_entries, refuse
from games.errors import InputError
from games.matrix import PreferenceGame


def from_wins(
    wins: ArrayLike,
    ties: ArrayLike | None = None,
    prior: float | None = None,
    labels: Labels = None,
    name: str = "",
) -> PreferenceGame:
    """P(i ≻ j) = (w_ij + t_ij/2 + prior)/(w_ij + w_ji + t_ij + 2 prior): (..., n, n) -> game.

    `wins[i, j]` is how often i beat j, `ties[i, j] = ties[j, i]` how often they tied; fractions are
    allowed. `prior` is a number of wins added to both sides of every pair. Without a prior, a pair
    that never met raises InputError; it is not treated as even. The diagonals of the counts must be
    0 (other values suggest that the table does not hold win counts); the diagonal of P is 1/2.

    >>> from_wins([[0, 3], [1, 0]]).payoff
    array([[0.5 , 0.75],
           [0.25, 0.5 ]])
    """
    if prior is not None and not 0 < prior < math.inf:
        raise InputError(f"the prior is {prior}; it must be a finite number > 0")
    wins = _as_counts(wins, labels, "wins")
    ties = np.zeros_like(wins) if ties is None else _as_counts(ties, labels, "ties")
    if wins.shape != ties.shape:
        raise InputError(
            f"wins have shape {wins.shape} but ties {ties.shape}; the shapes must be equal"
        )
    refuse(ties != _swap(ties), labels, "ties must be symmetric (a tie counts for both sides)")
    ties = ties + np.eye(wins.shape[-1])  # makes the diagonal 1/2
    played = wins + _swap(wins) + ties
    if prior is None:
        fix = "add a prior number of wins to each side (--prior 1, or prior=1 in Python)"
        refuse(played == 0, labels, f"this pair never met; {fix}")
        prior = 0.0
    return PreferenceGame((wins + ties / 2 + prior) / (played + 2 * prior), labels, name)


def _as_counts(entries: ArrayLike, labels: Labels, what: str) -> np.ndarray:
    counts = as_square(entries, f"a table of {what}")
    labels = as_labels(labels, counts.shape[-1])
    check_entries(counts, labels, labels, low=0, rule="counts must be finite numbers >= 0")
    diagonal = (counts != 0) & np.eye(counts.shape[-1], dtype=bool)
    refuse(diagonal, labels, f"{what} of an action against itself must be 0")
    return counts


def _swap(table: np.ndarray) -> np.ndarray:
    return table.swapaxes(-1, -2)
