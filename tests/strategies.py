"""Random games, policies and regularizers for hypothesis."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from games import PreferenceGame
from solvers import parse

KERNELS = [
    "reverse_kl",
    "forward_kl",
    "chi2",
    "js",
    "hellinger",
    "alpha:0.5",
    "alpha:3",
    "alpha:-1",
]
SUMS = ["0.1*forward_kl+0.5*reverse_kl", "reverse_kl+0.3*chi2", "js+2*hellinger", "0.2*entropy+js"]
SPECS = [*KERNELS, "entropy", *SUMS]

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(2, 7)
divergences = st.sampled_from(SPECS).map(parse)
strongly_convex = st.sampled_from(
    ["reverse_kl", "entropy", "forward_kl", "js", "hellinger", *SUMS]
).map(parse)
temperatures = st.floats(0.02, 2.0)


def random_policy(seed: int, n: int, concentration: float = 1.0) -> np.ndarray:
    """(n,): log-probabilities drawn from a Dirichlet, none below e^-20."""
    p = np.random.default_rng(seed).dirichlet(np.full(n, concentration)) + 1e-9
    return np.log(p / p.sum())


def random_game(seed: int, n: int) -> PreferenceGame:
    """A preference game with independent uniform entries above the diagonal."""
    upper = np.triu(np.random.default_rng(seed).uniform(0, 1, (n, n)), 1)
    return PreferenceGame(upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(n))


@st.composite
def games(draw) -> PreferenceGame:
    return random_game(draw(seeds), draw(sizes))


@st.composite
def games_with_reference(draw) -> tuple[PreferenceGame, np.ndarray]:
    game = draw(games())
    return game, random_policy(draw(seeds), game.n)
