"""Named games: one function per game; `get` looks them up by name.

Random games take a generator. Invalid sizes and parameters raise `InputError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from games.errors import InputError
from games.lookup import suggestion
from games.matrix import MatrixGame, PreferenceGame

MAX_SIZE = 20_000  # a payoff of 3 GB
THREE = ("rock", "paper", "scissors")
FIVE = ("rock", "scissors", "lizard", "paper", "spock")  # each beats the two that follow


def league() -> PreferenceGame:
    """Ten agents ordered by skill (Bradley-Terry), of which the top three form a cycle.

    The default game of the commands. Its unique equilibrium is (1/2, 3/10, 1/5) on the top three
    agents and 0 on the others. It is non-uniform and on the boundary of the simplex: a rule must
    drop seven agents without cycling among the other three.
    """
    skill = np.array([0.0, 0.0, 0.0, -0.25, -0.5, -0.75, -1.0, -1.25, -1.5, -1.75])
    payoff = bradley_terry(skill).payoff.copy()
    payoff[:3, :3] = biased_rock_paper_scissors((5, 3, 2), strength=0.5).payoff
    return PreferenceGame(payoff, tuple("ABCDEFGHIJ"), "league")


def biased_rock_paper_scissors(
    weights: Sequence[float] = (1, 10, 5), strength: float = 0.5
) -> PreferenceGame:
    """Rock, paper, scissors with unequal stakes: the equilibrium is proportional to `weights`.

    P = 1/2 + A/2, where |A_ij| is `strength` times the weight of the third action over the largest
    weight. The default is OpenSpiel's biased rock-paper-scissors.
    """
    if len(weights) != 3 or not all(0 < weight < math.inf for weight in weights):
        raise InputError(f"weights are {weights}; give three finite numbers > 0")
    rock, paper, scissors = strength * np.asarray(weights, float) / max(weights)
    stakes = [[0, -scissors, paper], [scissors, 0, -rock], [-paper, rock, 0]]
    return PreferenceGame(_preference(stakes, strength), THREE, "biased_rps")


def rock_paper_scissors() -> PreferenceGame:
    """Rock, paper, scissors: the equilibrium is uniform."""
    payoff = biased_rock_paper_scissors((1, 1, 1), strength=1.0).payoff
    return PreferenceGame(payoff, THREE, "rps")


def cyclic(n: int, strength: float = 1.0) -> PreferenceGame:
    """Each of n (odd) actions beats the next (n - 1)/2, cyclically; the equilibrium is uniform.

    P = 1/2 ± strength/2, strength in [0, 1].
    """
    if n < 3 or n % 2 == 0:
        raise InputError(f"a cyclic game cannot have {n} actions; n must be odd and at least 3")
    ahead = (np.arange(n) - np.arange(n)[:, None]) % n
    sign = np.where(ahead > n // 2, -1.0, 1.0)
    np.fill_diagonal(sign, 0.0)
    return PreferenceGame(_preference(strength * sign, strength), name=f"cyclic:{n}")


def rock_paper_scissors_lizard_spock() -> PreferenceGame:
    """Rock, paper, scissors, lizard, Spock: the cyclic game on five actions."""
    return PreferenceGame(cyclic(5).payoff, FIVE, "rpsls")


def condorcet(
    rankings: Sequence[Sequence[int]] = ((0, 1, 2), (1, 2, 0), (2, 0, 1)),
) -> PreferenceGame:
    """P(i, j) is the share of voters who rank i before j; a ranking lists 0..n-1, best first.

    The default is Condorcet's cycle: three transitive voters whose majority preference is cyclic.
    """
    n = len(rankings[0])
    if any(sorted(ranking) != list(range(n)) for ranking in rankings):
        raise InputError(f"each ranking must list every number from 0 to {n - 1} once")
    position = np.argsort(rankings, axis=-1)
    before = np.sign(position[:, None, :] - position[:, :, None]).mean(axis=0)
    return PreferenceGame(0.5 + before / 2, name="condorcet")


def bradley_terry(rewards: ArrayLike) -> PreferenceGame:
    """(..., n) -> game (..., n, n): P(i, j) = sigmoid(r_i - r_j); always transitive."""
    rewards = np.asarray(rewards, dtype=np.float64)
    payoff = _sigmoid(rewards[..., :, None] - rewards[..., None, :])
    return PreferenceGame(payoff, name=f"bradley_terry:{rewards.shape[-1]}")


def blade_chest(
    n: int, dial: float, rng: Generator, strength: float = 2.0, batch_shape: tuple[int, ...] = ()
) -> PreferenceGame:
    """Random game (..., n, n) with low-rank logits, from transitive (dial 0) to cyclic (dial 1).

    logit P(i, j) = strength ((1 - dial)(r_i - r_j) + dial sin(θ_j - θ_i)), with normal skills r and
    blade-chest vectors on the unit circle, θ_i = 2π(i + u_i)/n, |u_i| <= 1/4. At dial 1 every
    action beats the next one, and the last beats the first. Requires n >= 3.
    Source: Chen and Joachims, Modeling Intransitivity in Matchup and Comparison Data (WSDM 2016).
    """
    if n < 3:
        raise InputError(f"blade_chest needs at least 3 actions, not {n}")
    if not 0 <= dial <= 1:
        raise InputError(f"dial is {dial}; it must be between 0 (transitive) and 1 (cyclic)")
    skill = rng.normal(size=(*batch_shape, n))
    angle = 2 * np.pi / n * (np.arange(n) + rng.uniform(-0.25, 0.25, size=(*batch_shape, n)))
    better = skill[..., :, None] - skill[..., None, :]
    ahead = np.sin(angle[..., None, :] - angle[..., :, None])
    logits = strength * ((1 - dial) * better + dial * ahead)
    return PreferenceGame(_sigmoid(logits), name=f"blade_chest:{n}")


def random(n: int, rng: Generator, batch_shape: tuple[int, ...] = ()) -> PreferenceGame:
    """(..., n, n): P(i, j) independent and uniform on [0, 1] for i < j."""
    return PreferenceGame(
        0.5 + _antisymmetric(rng.uniform(-0.5, 0.5, size=(*batch_shape, n, n))), name=f"random:{n}"
    )


def misspecified(game: PreferenceGame, noise: float, rng: Generator) -> PreferenceGame:
    """`game` with normal noise of standard deviation `noise` added to the logits of P.

    Simulates a learned preference model. Preferences of exactly 0 or 1 have infinite logits and do
    not change.
    """
    with np.errstate(divide="ignore"):  # log 0 = -inf is intended
        log_p = np.log(game.payoff)
    logits = log_p - log_p.swapaxes(-1, -2)
    surrogate = _sigmoid(logits + _antisymmetric(noise * rng.normal(size=logits.shape)))
    return PreferenceGame(surrogate, game.labels, f"misspecified {game.name}")


def matching_pennies() -> MatrixGame:
    """The row player wins if both show the same side, otherwise the column player wins."""
    sides = ("heads", "tails")
    return MatrixGame(np.array([[1.0, -1.0], [-1.0, 1.0]]), sides, sides, "matching_pennies")


def blotto(row_regiments: int = 4, column_regiments: int = 3) -> MatrixGame:
    """Colonel Blotto with two posts; a rectangular game if the armies differ in size.

    At each post the larger force wins one point plus one for each opposing regiment there.
    """
    ours, theirs = np.arange(row_regiments + 1), np.arange(column_regiments + 1)

    def won(here: np.ndarray, there: np.ndarray) -> np.ndarray:
        here, there = here[:, None], there[None, :]
        return np.sign(here - there) * (1 + np.minimum(here, there))

    payoff = won(ours, theirs) + won(row_regiments - ours, column_regiments - theirs)
    rows = tuple(f"{k}-{row_regiments - k}" for k in ours)
    columns = tuple(f"{k}-{column_regiments - k}" for k in theirs)
    return MatrixGame(payoff, rows, columns, "blotto")


def _preference(stakes: ArrayLike, strength: float) -> np.ndarray:
    if not 0 <= strength <= 1:
        raise InputError(f"strength is {strength}; it must be between 0 and 1")
    return 0.5 + np.asarray(stakes) / 2


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(x / 2)


def _antisymmetric(table: np.ndarray) -> np.ndarray:
    upper = np.triu(table, 1)
    return upper - upper.swapaxes(-1, -2)


Game = PreferenceGame | MatrixGame


class _Entry(NamedTuple):
    description: str
    make: Callable[[int, Generator], Game]
    size: int | None = None  # default of n; None: the game has a fixed size


_ENTRIES = {
    "league": _Entry(
        "ten agents ordered by skill, of which the top three form a cycle",
        lambda n, rng: league(),
    ),
    "rps": _Entry("rock, paper, scissors", lambda n, rng: rock_paper_scissors()),
    "biased_rps": _Entry(
        "rock, paper, scissors with unequal stakes", lambda n, rng: biased_rock_paper_scissors()
    ),
    "rpsls": _Entry(
        "rock, paper, scissors, lizard, Spock", lambda n, rng: rock_paper_scissors_lizard_spock()
    ),
    "condorcet": _Entry(
        "three voters whose majority preference is cyclic", lambda n, rng: condorcet()
    ),
    "cyclic": _Entry(
        "each action beats the next (n - 1)/2, cyclically, n odd", lambda n, rng: cyclic(n), size=7
    ),
    "bradley_terry": _Entry(
        "transitive, from random rewards",
        lambda n, rng: bradley_terry(rng.normal(size=n)),
        size=10,
    ),
    "blade_chest": _Entry(
        "random, half transitive and half cyclic", lambda n, rng: blade_chest(n, 0.5, rng), size=10
    ),
    "random": _Entry("independent uniform preferences", random, size=10),
    "misspecified": _Entry(
        "league, with noise on the logits as in a learned preference model",
        lambda n, rng: misspecified(league(), 0.5, rng),
    ),
    "matching_pennies": _Entry("zero-sum, 2 x 2", lambda n, rng: matching_pennies()),
    "blotto": _Entry(
        "zero-sum, 5 x 4: four regiments against three, two posts", lambda n, rng: blotto()
    ),
}

DEFAULT = "league"
NAMES: dict[str, str] = {
    name: f"{description}; {name}:N for size N (default {size})" if size else description
    for name, (description, _, size) in _ENTRIES.items()
}


def get(spec: str, seed: int = 0) -> Game:
    """The game named `spec`, such as "rps" or, with a size, "random:50".

    `seed` matters only if the game is random. Raises InputError for an unknown name (with the
    nearest one) or an invalid size.

    >>> get("rps").payoff
    array([[0.5, 0. , 1. ],
           [1. , 0.5, 0. ],
           [0. , 1. , 0.5]])
    """
    name, colon, size = spec.partition(":")
    if name not in _ENTRIES:
        raise InputError(f"unknown game {_short(name)!r}: {suggestion(name, _ENTRIES)}")
    _, make, n = _ENTRIES[name]
    if colon:
        if n is None:
            raise InputError(f"game {name} has a fixed size; leave out {_short(colon + size)!r}")
        # int() of thousands of digits is refused by Python itself; no valid size has that many.
        if not (
            size.isascii() and size.isdecimal() and len(size) < 20 and 0 < int(size) <= MAX_SIZE
        ):
            raise InputError(
                f"game {_short(spec)}: the size must be a whole number from 1 to {MAX_SIZE}"
            )
        n = int(size)
    return make(n or 0, np.random.default_rng(seed))


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
