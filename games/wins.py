"""Preferences from counts of wins."""

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

    `wins[i, j]` says how often i beat j, `ties[i, j] = ties[j, i]` how often neither did; both may
    be fractions. `prior` is a count of wins added to each side of every pair: without it a pair
    that never met is refused, never taken for even. The diagonal of P is 1/2, and the diagonals of
    the counts must be 0: a table that has entries there is seldom one of wins.

    >>> from_wins([[0, 3], [1, 0]]).payoff
    array([[0.5 , 0.75],
           [0.25, 0.5 ]])
    """
    if prior is not None and not 0 < prior < math.inf:
        raise InputError(f"the prior is {prior}; it must be a finite number > 0")
    wins = _as_counts(wins, labels, "wins")
    ties = np.zeros_like(wins) if ties is None else _as_counts(ties, labels, "ties")
    if wins.shape != ties.shape:
        raise InputError(f"wins have shape {wins.shape} and ties {ties.shape}; make them the same")
    refuse(ties != _swap(ties), labels, "ties must be symmetric, for a tie counts on both sides")
    ties = ties + np.eye(wins.shape[-1])  # every action ties with itself: the diagonal is 1/2
    played = wins + _swap(wins) + ties
    if prior is None:
        mend = "give a prior count of wins for each side (--prior 1, or prior=1 in Python)"
        refuse(played == 0, labels, f"this pair never met; {mend}")
        prior = 0.0
    return PreferenceGame((wins + ties / 2 + prior) / (played + 2 * prior), labels, name)


def _as_counts(entries: ArrayLike, labels: Labels, what: str) -> np.ndarray:
    counts = as_square(entries, f"a table of {what}")
    labels = as_labels(labels, counts.shape[-1])
    check_entries(counts, labels, labels, low=0, rule="a count must be a finite number >= 0")
    diagonal = (counts != 0) & np.eye(counts.shape[-1], dtype=bool)
    refuse(diagonal, labels, f"{what} of an action against itself must be 0")
    return counts


def _swap(table: np.ndarray) -> np.ndarray:
    return table.swapaxes(-1, -2)
