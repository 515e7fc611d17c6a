"""The knock-out tournament by which INPO picks a pair out of K responses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from games.errors import InputError


@dataclass(frozen=True)
class Tournament:
    """What a tournament of K responses found, for each table of preferences.

    best, worst  (...,) the last winner among the winners and the last loser among the losers
    passed       (...,) whether best beat worst in the final check: INPO trains on these pairs only
    comparisons  how many preferences one tournament asked for, the final check included
    """

    best: np.ndarray
    worst: np.ndarray
    passed: np.ndarray
    comparisons: int


def tournament(preference: np.ndarray) -> Tournament:
    """(..., K, K) -> Tournament: best and worst of K responses as INPO (§4.1) picks them.

    Neighbours meet first; then winners meet winners and losers meet losers, to the last. The first
    of a pair wins a tie, but not in the final check. Where a round has one too many, the last goes
    on without playing: with an odd K it enters both halves. 3K/2 − 1 comparisons for an even K.
    Raises InputError for fewer than 2 responses.
    """
    preference = np.asarray(preference)
    k = preference.shape[-1]
    if k < 2 or preference.shape[-2] != k:
        raise InputError("a tournament needs the K x K preferences of at least 2 responses")
    table = preference.reshape(*preference.shape[:-2], k * k)

    def meet(players: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(..., m) -> the winners and losers (..., m // 2), and who had no opponent."""
        paired = players.shape[-1] // 2 * 2
        first, second = players[..., :paired:2], players[..., 1:paired:2]
        wins = np.take_along_axis(table, first * k + second, axis=-1) >= 0.5
        left = players[..., paired:]
        return np.where(wins, first, second), np.where(wins, second, first), left

    everyone = np.broadcast_to(np.arange(k), (*preference.shape[:-2], k))
    winners, losers, left = meet(everyone)
    comparisons = k // 2
    halves = []
    for half, side in ((winners, 0), (losers, 1)):
        half = np.concatenate([half, left], axis=-1)
        comparisons += half.shape[-1] - 1
        while half.shape[-1] > 1:
            met = meet(half)
            half = np.concatenate([met[side], met[2]], axis=-1)
        halves.append(half)
    best, worst = halves
    passed = np.take_along_axis(table, best * k + worst, axis=-1) > 0.5
    return Tournament(best[..., 0], worst[..., 0], passed[..., 0], comparisons + 1)
