"""The monotone complementarity problem behind every equilibrium, and two ways to solve it.

Find policies z ≥ 0, each block adding up to 1, and one ν per block with

    w = spread(ν) + τ∇R(z) − K z ≥ 0,   z ∘ w = 0.

`interior_point` follows the central path z ∘ w = t m (m the start, a policy) to t = 0 from afar.
`newton` solves g = K·(best response to g) from nearby; best responses have exact zeros, and logs of
tiny probabilities. Arrays are (N, B), the games of a batch last; payoffs are of order 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .divergences import Divergence
from .skew import Bipartite, Simplices, Skew, TangentResolvent, pick

MAX_STEPS = 100
# Newton's method cools by this factor once the mean square of a step is this short.
COOLING, SHORT = 0.5, 1.0
# A step along the path keeps z∘w/m above this fraction of its mean.
CENTRALITY = 1e-3
# The fractions 1 − s of the path that a step may leave over, from the best.
REMAINS = np.array([1e-4, 1e-3, 0.01, 0.03, 0.06, *np.arange(2, 19) / 20, 0.95, 0.98, 0.99, 0.999])
# Bounds on a gap: `END` is where rounding ends a path, `SOLVED` what a solved game must reach.
END, SOLVED = 1e-15, 1e-13
# A z below this moves no other; its log is that of the best response.
NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Problem:
    """K, the simplices, and τR with log μ (N, B). Without a regularizer log μ is uniform."""

    skew: Skew | Bipartite
    simplices: Simplices
    log_mu: np.ndarray
    regularizer: Divergence | None = None
    tau: float = 0.0

    def __getitem__(self, games: np.ndarray) -> Problem:
        return Problem(
            self.skew[games], self.simplices, pick(self.log_mu, games), self.regularizer, self.tau
        )

    def response(self, g: np.ndarray) -> np.ndarray:
        """(N, B) -> (N, B): log argmax_z ⟨g, z⟩ − τR(z)."""
        assert self.regularizer is not None
        respond, tau = self.regularizer.best_response, self.tau
        if len(self.simplices.sizes) == 1:
            return respond(g.T, self.log_mu.T, tau).T
        blocks = zip(self.simplices.split(g), self.simplices.split(self.log_mu), strict=True)
        return np.concatenate([respond(block.T, mu.T, tau).T for block, mu in blocks])

    def gradient(self, log_z: np.ndarray) -> np.ndarray:
        """(N, B) -> (N, B): τ∇R."""
        if self.regularizer is None:
            return np.zeros_like(log_z)
        return self.tau * self.regularizer.complete.gradient(log_z, self.log_mu)

    def curvature(self, log_z: np.ndarray) -> np.ndarray:
        """(N, B) -> (N, B): the derivative of τ∇R in log z."""
        if self.regularizer is None:
            return np.zeros_like(log_z)
        return self.tau * self.regularizer.complete.slope_derivative(log_z - self.log_mu)


@dataclass
class Result:
    """log z (N, B); and for each game (B,): solved, of several equilibria, matrices factored."""

    log_z: np.ndarray
    solved: np.ndarray
    several: np.ndarray
    steps: np.ndarray

    @staticmethod
    def empty(shape: tuple[int, int]) -> Result:
        no = np.zeros(shape[1], bool)
        return Result(np.full(shape, np.nan), no, no.copy(), np.zeros(shape[1], int))

    def fill(self, games: np.ndarray, found: Result) -> None:
        """Enter what was found for some of the games; the matrices add up."""
        self.log_z[:, games] = found.log_z
        self.solved[games], self.several[games] = found.solved, found.several
        self.steps[games] += found.steps


@dataclass
class Iterate:
    """A point of the path with z, w > 0: all (N, B) but ν, (q, B). Or a coefficient of the path."""

    z: np.ndarray
    w: np.ndarray
    nu: np.ndarray
    payoffs: np.ndarray  # K z
    gradient: np.ndarray  # τ∇R(z)

    def __getitem__(self, games: np.ndarray) -> Iterate:
        return Iterate(*(pick(a, games) for a in vars(self).values()))


Finish = Callable[[Problem, Iterate], Result]


def newton(problem: Problem, g: np.ndarray, heat: np.ndarray) -> Result:
    """(N, B), (B,) ≥ 1 -> Result: the regularized equilibrium, from payoffs g near those in it.

    Each game is first solved at the temperature heat·τ, and cooled as soon as the steps are short.
    A step at one temperature has to shrink the local norm √Σh(K z − g)², whose square is the
    duality gap to second order; the first that does not is the last.
    """
    result = Result.empty(g.shape)
    games, last = np.arange(g.shape[1]), np.full(g.shape[1], np.inf)
    spread, total = problem.simplices.spread, problem.simplices.total
    for _ in range(MAX_STEPS):
        log_z = problem.response(g / heat)
        z = np.exp(log_z)
        miss = problem.skew @ z - g
        curvature = heat * problem.curvature(log_z)
        h = np.where(z > 0, z / curvature, 0.0)
        centered = miss - spread(total(h * miss) / total(h))
        gap = (h * centered**2).sum(axis=0)
        cold = heat == 1
        stalled = ~(gap <= np.where(cold, 0.5, 1.0) * last)
        ended = stalled | (cold & (gap <= 1e-26 * problem.tau))
        last, right = gap, miss
        if not cold.all():
            # The mean square of the relative change of z.
            change = np.where(z > 0, h * centered**2 / curvature, 0.0).sum(axis=0)
            cooler = np.where(change <= SHORT, np.maximum(1.0, COOLING * heat), heat)
            # The step solves for the cooler game, with the curvature of the mean temperature.
            right = miss + (heat - cooler) * np.where(z > 0, problem.gradient(log_z), 0.0)
            h = h * (2 * heat / (heat + cooler))
            last, heat = np.where(cooler < heat, np.inf, gap), cooler
        if ended.any():
            end = _checked(problem[ended], *(pick(a, ended) for a in (log_z, z, h, miss)))
            end.solved &= cold[ended]
            result.fill(games[ended], end)
            left = ~ended
            if not left.any():
                break
            problem, games, last, heat = problem[left], games[left], last[left], heat[left]
            z, h, right = (pick(a, left) for a in (z, h, right))
        result.steps[games] += 1
        dz, _ = TangentResolvent(problem.skew, problem.simplices, h, right).first
        g = problem.skew @ (z + dz)
    return result


def _checked(problem: Problem, log_z, z, h, miss) -> Result:
    """z, the best response to K z − miss, is solved if two bounds on its duality gap are small.

    Far from an equilibrium h can vanish, and with it the local norm; the first bound cannot. Where
    R is almost linear, payoffs do not determine z to full precision; the second bound shows it.
    Neither can happen where the payoffs are settled and h is moderate.
    """
    result = Result.empty(z.shape)
    result.log_z[:] = log_z
    settled = (np.abs(miss).max(axis=0) <= 1e-12) & (h.max(axis=0) <= 1e6)
    result.solved[:] = settled
    if not settled.all():
        doubtful = ~settled
        problem = problem[doubtful]
        log_z, z, h, miss = (pick(a, doubtful) for a in (log_z, z, h, miss))
        response = problem.response(problem.skew @ z)
        moved = np.exp(response) - z
        bound = (miss * moved + h * (problem.skew @ moved) ** 2).sum(axis=0)
        result.solved[doubtful] = bound <= 0.1 * SOLVED
        result.log_z[:, doubtful] = np.where(z < NEGLIGIBLE, response, log_z)
    return result


def interior_point(problem: Problem, finish: Finish, first_attempt: float, order: int) -> Result:
    """Follow the central path of each game until `finish` solves the game from a point of it.

    `finish` is tried when t has first fallen to `first_attempt`, and then at each fifth of the
    last time. Each matrix serves `order` terms of the path. A game that `finish` never solves is
    followed to where rounding ends the path.
    """
    at = _start(problem)
    m = at.z
    result = Result.empty(m.shape)
    games = np.arange(m.shape[1])
    limit, best = np.full(len(games), first_attempt), np.full(len(games), np.inf)
    careful = stuck = np.zeros(len(games), bool)
    for _ in range(MAX_STEPS):
        t = _mean(problem, at.z * at.w)
        over = stuck | (t <= END)
        near = (t <= limit) | over
        if near.any():
            end = finish(problem[near], at[near])
            last = over[near] & ~end.solved
            end.log_z[:, last] = _end_of_path(problem[near], at[near])[:, last]
            end.solved[last] = t[near][last] <= SOLVED
            result.fill(games[near], end)
            limit[near] = 0.2 * t[near]
            left = ~(over | result.solved[games])
            if not left.any():
                break
            problem, at, m, t = problem[left], at[left], pick(m, left), t[left]
            games, limit, best, careful = games[left], limit[left], best[left], careful[left]
        result.steps[games] += 1
        path = _path(problem, at, t * m, careful, order)
        at, remains = _follow(problem, path, m)
        t = _mean(problem, at.z * at.w)
        stuck = careful & (remains == 1)
        # Hardly towards 0: next, a plain Newton step to the center.
        careful = (t > 0.7 * best) | (remains > 0.9)
        best = np.minimum(best, t)
    else:
        result.log_z[:, games] = _end_of_path(problem, at)
    return result


def _mean(problem: Problem, products: np.ndarray) -> np.ndarray:
    """(N, B) -> (B,): t, the mean of z∘w/m with weights m."""
    return products.sum(axis=0) / len(problem.simplices.sizes)


def _start(problem: Problem) -> Iterate:
    """As far from μ towards uniform as the regularizer does not pull more than the payoffs do."""
    simplices, log_z = problem.simplices, problem.log_mu
    if problem.regularizer is not None:
        for share in (0.25, 0.5, 0.75, 1.0):
            mixed = (1 - share) * problem.log_mu
            mixed = mixed - simplices.spread(np.log(simplices.total(np.exp(mixed))))
            pull = _width(problem, problem.gradient(mixed))
            log_z = np.where(pull <= _width(problem, problem.skew @ np.exp(mixed)), mixed, log_z)
    z = np.exp(log_z)
    payoffs, gradient = problem.skew @ z, problem.gradient(log_z)
    excess = gradient - payoffs
    width = _width(problem, excess)
    low = np.stack([block.min(axis=0) for block in simplices.split(excess)])
    nu = np.where(width > 0, width, 1.0) - low
    return Iterate(z, simplices.spread(nu) + excess, nu, payoffs, gradient)


def _width(problem: Problem, values: np.ndarray) -> np.ndarray:
    """(N, B) -> (B,): the widest range within a block."""
    blocks = problem.simplices.split(values)
    return np.max([block.max(axis=0) - block.min(axis=0) for block in blocks], axis=0)


def _path(
    problem: Problem, at: Iterate, center: np.ndarray, careful: np.ndarray, order: int
) -> list[Iterate]:
    """Taylor coefficients at s = 0 of the path z∘w = (1 − s)((1 − s) z₀∘w₀ + s·center).

    One matrix serves every order. Of a curved gradient the second order is estimated and the rest
    left out. A careful game gets one Newton step to z∘w = center/2 instead.
    """
    curvature = problem.curvature(np.log(at.z))
    h = at.z / (at.w + curvature)
    now = at.z * at.w
    product = {1: np.where(careful, 0.5 * center - now, center - 2 * now), 2: now - center}
    solve = TangentResolvent(problem.skew, problem.simplices, h, product[1] / at.z)
    path = [at]
    for k in range(1, order + 1):
        rest = product.get(k, 0.0) - sum(path[j].z * path[k - j].w for j in range(1, k))
        bend = _bend(problem, at, path[1].z, curvature) if k == 2 else np.zeros_like(h)
        if k > 1:
            rest, bend = np.where(careful, 0.0, rest), np.where(careful, 0.0, bend)
        z, nu = solve.first if k == 1 else solve(rest / at.z - bend)
        w = (rest - at.w * z) / at.z
        gradient = curvature * z / at.z + bend
        payoffs = problem.simplices.spread(nu) + gradient - w
        path.append(Iterate(z, w, nu, payoffs, gradient))
    return path


def _bend(problem: Problem, at: Iterate, dz: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """The second-order term of τ∇R along z + s dz, from a tenth of the way to the boundary."""
    if problem.regularizer is None:
        return np.zeros_like(dz)
    s = 0.1 / np.maximum((-dz / at.z).max(axis=0), 1.0)
    return (
        problem.gradient(np.log(at.z + s * dz)) - at.gradient - s * curvature * dz / at.z
    ) / s**2


def _follow(problem: Problem, path: list[Iterate], m: np.ndarray) -> tuple[Iterate, np.ndarray]:
    """The farthest point of the path, by bisection over REMAINS, well inside; and its 1 − s."""
    spread, total = problem.simplices.spread, problem.simplices.total
    terms = [np.stack([getattr(term, part) for term in path]) for part in ("z", "nu", "payoffs")]
    low, high = np.zeros(m.shape[1], int), np.full(m.shape[1], len(REMAINS) - 1)
    while True:
        middle = (low + high) // 2
        powers = (1 - REMAINS[middle]) ** np.arange(len(path))[:, None, None]
        z, nu, payoffs = ((powers * term).sum(axis=0) for term in terms)
        z = z / spread(total(z))
        gradient = problem.gradient(np.log(z))
        w = spread(nu) + gradient - payoffs
        lowest = CENTRALITY * np.abs(_mean(problem, z * w))
        inside = (z.min(axis=0) > 0) & ((z * w / m).min(axis=0) > lowest)
        if (low == high).all():
            break
        low, high = (
            np.where(inside, low, np.minimum(middle + 1, high)),
            np.where(inside, middle, high),
        )
    payoffs = problem.skew @ z
    w = spread(nu) + gradient - payoffs
    inside &= (w > 0).all(axis=0)
    # Where not even the shortest step is inside, stay.
    there = Iterate(z, w, nu, payoffs, gradient)
    chosen = (
        np.where(inside, a, b)
        for a, b in zip(vars(there).values(), vars(path[0]).values(), strict=True)
    )
    return Iterate(*chosen), np.where(inside, REMAINS[low], 1.0)


def _end_of_path(problem: Problem, at: Iterate) -> np.ndarray:
    """log z where the path ends."""
    if problem.regularizer is None:
        return np.log(at.z)
    slope = (at.payoffs - problem.simplices.spread(at.nu)) / problem.tau
    slope -= problem.regularizer.tilt * problem.log_mu
    response = problem.log_mu + problem.regularizer.complete.inverse_slope(slope)
    return np.where(at.z < NEGLIGIBLE, response, np.log(at.z))
