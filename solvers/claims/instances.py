"""Games with random policies, on which the claims of several papers are tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from games import SymmetricGame

from ..arrays import Array, against, dot
from ..divergences import reverse_kl
from ..equilibrium import equilibrium
from ..gap import duality_gap
from ..loop import kl_divergence
from ..plays import Plays
from .ledger import Setting, largest, random_policies

TAUS = (0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Instances:
    """Games (..., n, n) with policies log π_t, log π and log μ (..., n), and reverse KL as R."""

    games: SymmetricGame
    current: np.ndarray
    other: np.ndarray
    ref: np.ndarray
    about: str
    tau: float = 0.2

    @classmethod
    def of(cls, setting: Setting, count: int = 200, n: int = 4, spread: float = 1.5) -> Self:
        """Random games, references and policies; or the given game with random policies."""
        rng = setting.rng
        games = setting.games(rng, count, n)
        ref = setting.references(rng, games)
        current, other = (random_policies(rng, ref.shape, spread) for _ in range(2))
        return cls(games, current, other, ref, setting.about(games))

    @property
    def plays(self) -> Plays:
        return Plays.exact(self.games.payoff, self.current, self.ref)

    @property
    def star(self) -> np.ndarray:
        """(..., n): log π*."""
        return equilibrium(self.games, reverse_kl, self.tau, self.ref).logp

    def wins(self, opponent: np.ndarray | None = None) -> np.ndarray:
        """(..., n): P(y ≻ opponent); the opponent is π_t unless given."""
        return against(self.games.payoff, np.exp(self.current if opponent is None else opponent))

    def value(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(...,): J(π_1, π_2) = P(π_1 ≻ π_2) − τKL(π_1‖μ) + τKL(π_2‖μ)."""
        pull = kl_divergence(second, self.ref) - kl_divergence(first, self.ref)
        return dot(np.exp(first), self.wins(second)) + self.tau * pull

    def gap(self, logp: np.ndarray) -> np.ndarray:
        """(...,): the duality gap of π."""
        return duality_gap(self.games, logp, None, reverse_kl, self.tau, self.ref)


def differences(x: np.ndarray) -> np.ndarray:
    """(..., n) -> (..., n, n): x(y) − x(y′)."""
    return x[..., :, None] - x[..., None, :]


def variance(logp: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(..., n), (..., n) -> (...,): the variance of `values` under π."""
    p = np.exp(logp)
    return dot(p, (values - dot(p, values)[..., None]) ** 2)


def apart(first: Array, second: np.ndarray | float) -> float:
    """The largest difference, relative to the largest absolute value if that exceeds 1."""
    return largest(np.asarray(first) - second) / max(1.0, largest(first, second))


def dependence(difference: np.ndarray, terms: np.ndarray) -> float:
    """(P, ...), (P, ...) -> the largest variation of `difference` over policies (the first axis).

    Relative to the largest absolute value of `terms` if that exceeds 1.
    """
    return largest(difference - difference[:1]) / max(1.0, largest(terms))
