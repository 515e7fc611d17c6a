"""Exact equilibria of zero-sum games: symmetric or not, regularized or not, one or many at once."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass

import numpy as np

from games import MatrixGame, SymmetricGame
from games.errors import InputError

from . import rational
from .arrays import normalize
from .divergences import Divergence
from .faces import MARGIN, finish, is_equilibrium
from .gap import duality_gap
from .interior_point import Iterate, Problem, Result, interior_point, newton
from .loop import Status
from .simplex import simplex
from .skew import Bipartite, Simplices, Skew, pick

# Largest gap of a converged equilibrium, in units of the preference, or see `_tolerance`.
TOLERANCE = 1e-12
# A small game is solved in exact arithmetic if the range of its payoffs is more than WIDE times the
# smallest of them; those below NOISE of the range are taken for rounding errors of 0.
WIDE, NOISE = 1e6, 5e-16
# Bound on the rounding error of a mean payoff, relative to that of its absolute values.
ROUNDING = 64 * float(np.finfo(float).eps)
# Games of up to LARGEST actions are solved CHUNK entries of payoff at a time: all that is worked on
# then stays in the cache.
LARGEST, CHUNK = 32, 1 << 17
# Cooling from a temperature further above τ than this takes longer than the path.
HOTTEST = 64.0


@dataclass(frozen=True)
class Equilibrium:
    """What both players do in equilibrium, and what bounds the error.

    logp, opponent_logp  log-probabilities (..., m), (..., n); the same in a symmetric game. Exact
                         zeros are -inf
    value                (...,) xᵀAy, what the row player then expects, without the regularizers
    duality_gap          (...,) see `duality_gap`
    unique               (...,) False where there are known to be several equilibria: then logp is
                         the analytic center, which maximizes Σ log x + Σ log y over the actions
                         that some equilibrium plays + Σ log (payoff lost) over the others
    iterations           (...,) linear systems solved for each game
    status               converged, or max_steps if a gap is above 1e-12 (preferences) or above
                         1e-12 of the payoffs under both policies (other games)
    """

    logp: np.ndarray
    opponent_logp: np.ndarray
    value: np.ndarray
    duality_gap: np.ndarray
    unique: np.ndarray
    method: str
    seconds: float
    iterations: np.ndarray
    status: Status

    @property
    def policy(self) -> np.ndarray:
        """(..., m): the row player's probabilities."""
        return np.exp(self.logp)

    @property
    def opponent_policy(self) -> np.ndarray:
        """(..., n): the column player's probabilities."""
        return np.exp(self.opponent_logp)


def equilibrium(
    game: SymmetricGame | MatrixGame,
    regularizer: Divergence | None = None,
    tau: float = 0.0,
    reference: np.ndarray | tuple[np.ndarray, np.ndarray] | None = None,
) -> Equilibrium:
    """The equilibrium of J(x, y) = xᵀAy − τR(x, μ₁) + τR(y, μ₂), to a duality gap ≤ 1e-12.

    `reference` is log μ (..., n), uniform unless given, or a pair of them in a zero-sum game. At
    τ = 0 an interior point method finds the optimal face, and a linear system the equilibrium on
    it; at τ > 0 Newton's method does, from an interior point where it must.
    Raises InputError for τ < 0, τ > 0 without a regularizer, or a reference that does not fit.

    >>> from games import zoo
    >>> equilibrium(zoo.get("biased_rps")).policy
    array([0.0625, 0.625 , 0.3125])
    """
    began = time.perf_counter()
    if not 0 <= tau < math.inf:
        raise InputError(f"tau is {tau}; it must be a number ≥ 0")
    if tau > 0 and regularizer is None:
        raise InputError("tau > 0 needs a regularizer, such as reverse_kl")
    if tau == 0:
        regularizer = None
    references = references_of(game, reference)
    # Without a regularizer the reference does not matter, and every path starts at uniform.
    batch, (m, n) = game.batch_shape, game.payoff.shape[-2:]
    exactly = np.zeros(batch, bool)
    if regularizer is None and game.kind != "preference" and m + n <= rational.LARGEST:
        exactly = _wide(game.payoff)
    starts = references if regularizer else references_of(game, None)
    found = _find(game, regularizer, tau, starts, ~exactly.reshape(-1))

    symmetric = isinstance(game, SymmetricGame)
    log_z = np.ascontiguousarray(found.log_z.T)
    logp = log_z[:, :m].reshape(*batch, m)
    opponent_logp = logp if symmetric else log_z[:, m:].reshape(*batch, n)
    if symmetric:
        value = np.full(batch, game.value)
    else:
        wins = (game.payoff @ np.exp(opponent_logp)[..., None])[..., 0]
        value = (np.exp(logp) * wins).sum(axis=-1)
    gap = duality_gap(
        game,
        logp,
        None if symmetric else opponent_logp,
        regularizer,
        tau,
        references[0] if symmetric else references,
    )
    solution = Equilibrium(
        logp,
        opponent_logp,
        value,
        gap,
        ~found.several.reshape(batch),
        "exact",
        0.0,
        found.steps.reshape(batch),
        Status.CONVERGED,
    )
    good = np.abs(gap) <= TOLERANCE
    if game.kind != "preference":
        good = np.abs(gap) <= _tolerance(game, solution, tau)
        exactly |= ~good & (regularizer is None)
        if exactly.any() and m + n <= rational.LARGEST:
            solution = _in_exact_arithmetic(game, solution, exactly)
            good = np.abs(solution.duality_gap) <= _tolerance(game, solution, tau)
    elif not good.all():
        good = np.abs(gap) <= TOLERANCE * max(1.0, tau)
    return dataclasses.replace(
        solution,
        seconds=time.perf_counter() - began,
        status=Status.CONVERGED if good.all() else Status.MAX_STEPS,
    )


def _wide(payoff: np.ndarray) -> np.ndarray:
    """(..., m, n) -> (...,): whether payoffs that matter are small relative to the range of all."""
    # In eighths: neither the range of payoffs of 1e308 nor WIDE times the least overflows.
    size = np.abs(payoff)
    extent = payoff.max(axis=(-1, -2)) / 8 - payoff.min(axis=(-1, -2)) / 8
    counts = size / 8 > NOISE * extent[..., None, None]
    least = np.where(counts, size, np.inf).min(axis=(-1, -2))
    return extent / WIDE > least / 8


def _tolerance(game: SymmetricGame | MatrixGame, found: Equilibrium, tau: float) -> np.ndarray:
    """(...,): the largest gap of a converged equilibrium.

    It is relative to the mean |payoff − value| under both policies, or to τ if that is larger: the
    largest payoff can be one that is never played. If the mean is 0 (both players play a single
    action), the smallest change by a deviation replaces it. It is at least the rounding error of
    the gap.
    """
    x, y = found.policy[..., None], found.opponent_policy[..., None]
    size = np.abs(game.payoff - found.value[..., None, None])
    rows, columns = (size @ y)[..., 0], (size.swapaxes(-1, -2) @ x)[..., 0]
    unit = (x[..., 0] * rows).sum(axis=-1)
    both = np.concatenate([rows, columns], axis=-1)
    least = np.where(both > 0, both, np.inf).min(axis=-1)
    unit = np.where(unit > 0, unit, np.where(np.isfinite(least), least, 0.0))
    # Rounding of the payoffs of the best actions.
    largest = np.abs(game.payoff)
    best_row = (game.payoff @ y)[..., 0].argmax(axis=-1)[..., None]
    best_column = (game.payoff.swapaxes(-1, -2) @ x)[..., 0].argmin(axis=-1)[..., None]
    rounding = np.take_along_axis((largest @ y)[..., 0], best_row, axis=-1)
    rounding += np.take_along_axis((largest.swapaxes(-1, -2) @ x)[..., 0], best_column, axis=-1)
    return np.maximum(TOLERANCE * np.maximum(unit, tau), ROUNDING * rounding[..., 0])


def _in_exact_arithmetic(
    game: SymmetricGame | MatrixGame, found: Equilibrium, games: np.ndarray
) -> Equilibrium:
    """Solves some of the games again, in exact arithmetic."""
    policies = [np.array(found.policy), np.array(found.opponent_policy)]
    value, unique = np.array(found.value, float), np.array(found.unique)
    for place in zip(*np.nonzero(np.atleast_1d(games)), strict=True):
        where = place if game.batch_shape else ()
        x, y, value[where], unique[where] = rational.exact_equilibrium(game.payoff[where])
        policies[0][where], policies[1][where] = x, y
    with np.errstate(divide="ignore"):
        logp, opponent_logp = (np.log(policy) for policy in policies)
    symmetric = isinstance(game, SymmetricGame)
    gap = duality_gap(game, logp, None if symmetric else opponent_logp)
    return dataclasses.replace(
        found,
        logp=logp,
        opponent_logp=opponent_logp,
        value=value,
        duality_gap=gap,
        unique=unique,
    )


def references_of(
    game: SymmetricGame | MatrixGame, reference: np.ndarray | tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Both players' log μ, (..., m) and (..., n), from what the user gave. Raises InputError."""
    given = reference if isinstance(reference, tuple | list) else (reference, reference)
    if len(given) != 2 or (isinstance(game, SymmetricGame) and isinstance(reference, tuple | list)):
        raise InputError("the reference is one policy, or a pair of them in a zero-sum game")
    references = []
    for theta, size in zip(given, game.payoff.shape[-2:], strict=True):
        shape = (*game.batch_shape, size)
        if theta is None:
            references.append(np.broadcast_to(-math.log(size), shape))
            continue
        theta = np.asarray(theta, dtype=float)
        try:
            theta = np.broadcast_to(theta, shape)
        except ValueError:
            raise InputError(f"the reference has shape {theta.shape}, not {shape}") from None
        if not np.isfinite(theta).all():
            raise InputError("the reference has zeros: every action needs a positive share")
        if not np.allclose(np.exp(theta).sum(axis=-1), 1, atol=1e-6):
            raise InputError("the reference must be log-probabilities: exp of it must sum to 1")
        references.append(normalize(theta))
    return references[0], references[1]


def _find(game, regularizer, tau, references, chosen: np.ndarray) -> Result:
    """The chosen games, by the fastest method that solves them; the others are left at log μ."""
    m, n = game.payoff.shape[-2:]
    payoffs = game.payoff.reshape(-1, m, n)
    symmetric = isinstance(game, SymmetricGame)
    simplices = Simplices((n,) if symmetric else (m, n))
    log_mu = np.concatenate(references[: len(simplices.sizes)], axis=-1).reshape(len(payoffs), -1)
    small = sum(simplices.sizes) <= LARGEST
    quick = [_by_simplex if small else _by_path]
    if regularizer is not None:
        quick = [_by_newton, _by_path, _by_long_cooling]
    found = Result.empty((sum(simplices.sizes), len(payoffs)))
    found.log_z[:] = log_mu.T
    found.solved = ~chosen
    with np.errstate(all="ignore"):
        for attempt in (*quick, _with_care):
            left = np.flatnonzero(~found.solved)
            many = CHUNK // sum(simplices.sizes) ** 2 if small and attempt is not _with_care else 1
            for games in np.split(left, range(many, len(left), many)):
                if len(games):
                    table, scale = _scaled(payoffs[games], game.value if symmetric else None)
                    if regularizer is not None:
                        common = scale.max()  # one temperature for all
                        table, scale = table * (scale / common), common
                    skew = Skew(table) if symmetric else Bipartite(table)
                    mu = np.ascontiguousarray(log_mu[games].T)
                    problem = Problem(skew, simplices, mu, regularizer, float(tau / np.max(scale)))
                    found.fill(games, attempt(problem))
    return found


def _scaled(payoffs: np.ndarray, middle: float | None) -> tuple[np.ndarray, np.ndarray]:
    """(B, m, n) -> (m, n, B), (B,): payoffs between −1 and 1, and the unit they are in."""
    table = np.ascontiguousarray(payoffs.transpose(1, 2, 0))
    low, high = table.min(axis=(0, 1)), table.max(axis=(0, 1))
    if middle is None:
        middle = (low + high) / 2
    scale = np.maximum(high - middle, middle - low)
    scale = np.where(scale > 0, scale, 1.0)
    return (table - middle) / scale, scale


def _by_simplex(problem: Problem) -> Result:
    """Only where the equilibrium is the only one: otherwise it would be a corner."""
    x, y = simplex(2.0 + problem.skew.payoff)
    z = y if isinstance(problem.skew, Skew) else np.concatenate([x, y])
    result = Result.empty(z.shape)
    result.log_z = np.log(z)
    result.solved = is_equilibrium(problem, z, MARGIN)
    result.steps += 1
    return result


def _by_newton(problem: Problem, hottest: float = HOTTEST) -> Result:
    """Newton's method, from a temperature at which its first step changes no policy by much.

    Games that need a temperature above `hottest` times τ are left unsolved.
    """
    log_start = problem.response(np.zeros_like(problem.log_mu))
    start = np.exp(log_start)
    g = problem.skew @ start
    centered = g - problem.simplices.spread(problem.simplices.total(start * g))
    heat = np.maximum(np.abs(centered / problem.curvature(log_start)).max(axis=0), 1.0)
    near = heat <= hottest
    if near.all():
        return newton(problem, g, heat)
    result = Result.empty(g.shape)
    if near.any():
        result.fill(near, newton(problem[near], pick(g, near), heat[near]))
    return result


def _by_long_cooling(problem: Problem) -> Result:
    """Newton's method from any temperature: slow, but no probability is too small for it."""
    return _by_newton(problem, math.inf)


def _by_path(problem: Problem) -> Result:
    if problem.regularizer is None:
        uniform = 1 / sum(problem.simplices.sizes)
        return interior_point(problem, finish, first_attempt=uniform**2, order=10)
    return interior_point(problem, _by_newton_from, 0.3 * problem.tau, order=3)


def _by_newton_from(problem: Problem, at: Iterate) -> Result:
    return newton(problem, at.payoffs, np.ones(at.z.shape[1]))


def _with_care(problem: Problem) -> Result:
    """One game, pivoting in its whole table."""
    return _by_path(dataclasses.replace(problem, skew=problem.skew.whole))
