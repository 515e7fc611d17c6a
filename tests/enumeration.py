"""Expectations over K samples without sampling: every multiset of draws under its probability."""

from __future__ import annotations

import itertools
from math import factorial, prod

import numpy as np
from scipy.optimize import root

from solvers import Plays, parse
from solvers.arrays import normalize


def draws(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(M, K) multisets of K draws from n actions, and (M,) in how many orders each occurs."""
    sets = list(itertools.combinations_with_replacement(range(n), k))
    orders = [factorial(k) // prod(factorial(s.count(y)) for y in set(s)) for s in sets]
    return np.array(sets), np.array(orders, dtype=float)


def sampled_plays(payoff, logp, logp_ref, k: int, diagonal="exclude", **known):
    """(n, n), (n,), (n,) -> sampled Plays of every multiset (M, K), its draws and probability."""
    y, orders = draws(len(logp), k)
    known = {name: array[y] for name, array in known.items()}
    plays = Plays.sampled(
        payoff[y[:, :, None], y[:, None, :]], logp[y], logp_ref[y], diagonal, **known
    )
    return plays, y, orders * np.exp(logp[y].sum(axis=-1))


def given_response(values, y, probability, logp):
    """(M, K) -> (n,): E[value of a response | it is that action], draws being exchangeable."""
    chosen = y[..., None] == np.arange(len(logp))
    total = (probability[:, None, None] * chosen * values[..., None]).sum(axis=(0, 1))
    return total / (y.shape[-1] * np.exp(logp))


def order(x, error) -> float:
    """The exponent p of error ∝ x^p, by least squares over the logarithms."""
    return float(np.polyfit(np.log(x), np.log(np.abs(error)), 1)[0])


def zero(field, start) -> np.ndarray:
    """log π (n,) with field(log π) constant over the actions."""

    def residual(logits):
        values = field(normalize(np.append(logits, 0.0)))
        return values[:-1] - values[-1]

    found = root(residual, start[:-1] - start[-1], tol=1e-14)
    assert np.abs(found.fun).max() < 1e-12, found.message
    return normalize(np.append(found.x, 0.0))


def equilibrium(payoff, logp_ref, regularizer: str, tau: float) -> np.ndarray:
    """log π* (n,), interior, from its first-order condition alone."""
    pull = parse(regularizer).gradient
    return zero(lambda logp: payoff @ np.exp(logp) - tau * pull(logp, logp_ref), logp_ref)
