"""The end of the unregularized path: from near an equilibrium to the exact one.

An equilibrium has z = 0 off its support and w = spread(ν) − K z = 0 on it. If that linear system
has one solution, clear of the boundary, it is the only equilibrium. Otherwise the equilibria are a
face, and the path ends in its analytic center: where Σ log z on the support + Σ log w off it is
largest.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import get_lapack_funcs

from .interior_point import SOLVED, Iterate, Problem, Result

_getrf, _getrs, _gecon = get_lapack_funcs(("getrf", "getrs", "gecon"), dtype=float)

# The only equilibrium exceeds this in z on the support and w off it, and so does the reciprocal
# condition number of its linear system. Singular values below it count as 0.
MARGIN = 1e-11
# This close to the end of a path its large entries are the support of the whole face.
CLOSE = 1e-9


def finish(problem: Problem, at: Iterate) -> Result:
    """(N, 1) -> Result: the only equilibrium on the apparent support, or the center of its face."""
    result = Result.empty(at.z.shape)
    # z as a multiple of uniform, against w as a multiple of what mixed payoffs vary by.
    support = (at.z / np.exp(problem.log_mu) > at.w / np.linalg.norm(at.z))[:, 0]
    sizes = problem.simplices.total(support.astype(int))
    if not sizes.all():
        return result
    z = np.where(support, at.z[:, 0], 0.0)
    # A skew matrix of even size is regular: its null vector needs an odd one, or two equal blocks.
    if sizes[0] % 2 if len(sizes) == 1 else sizes[0] == sizes[1]:
        result.steps += 1
        system, right = _system(problem, support, sizes)
        norm = np.abs(system).sum(axis=0).max()
        lu, pivots, _ = _getrf(system)
        if _gecon(lu, norm)[0] > MARGIN:
            solution, _ = _getrs(lu, pivots, right)
            solution += _getrs(lu, pivots, right - system @ solution)[0]
            z[support] = solution[: -len(sizes)]
            result.solved[:] = is_equilibrium(problem, z[:, None], MARGIN)
    if not result.solved[0] and (at.z * at.w).sum() < CLOSE:
        result.steps += 1
        z, result.several[:] = _center(problem, at, support, sizes)
        result.solved[:] = is_equilibrium(problem, z[:, None], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        result.log_z[:, 0] = np.log(z)
    return result


def is_equilibrium(problem: Problem, z: np.ndarray, margin: float) -> np.ndarray:
    """(N, B) -> (B,): no gain beyond rounding, and z on the support and w off it > margin."""
    payoffs = problem.skew @ z
    best = np.stack([block.max(axis=0) for block in problem.simplices.split(payoffs)])
    w = problem.simplices.spread(best) - payoffs
    clear = np.where(z == 0, w >= margin, z > margin).all(axis=0)
    return clear & (best.sum(axis=0) <= 0.1 * SOLVED)


def _system(problem: Problem, support, sizes) -> tuple[np.ndarray, np.ndarray]:
    """The linear system of a support in (z, ν): −K z + spread(ν) = 0, total(z) = 1."""
    players, count = len(sizes), sum(sizes)
    system = np.zeros((count + players, count + players), order="F")
    system[:count, :count] = -problem.skew.restricted(support).payoff[..., 0]
    system[:count, count:] = problem.simplices.blocks[support]
    system[count:, :count] = system[:count, count:].T
    return system, np.repeat([0.0, 1.0], [count, players])


def _center(problem: Problem, at: Iterate, support, sizes) -> tuple[np.ndarray, bool]:
    """(N,): the analytic center of the equilibria on the support, and whether there are several."""
    system, right = _system(problem, support, sizes)
    count = sum(sizes)
    left, sigma, directions = np.linalg.svd(system)
    rank = int((sigma > MARGIN).sum())
    # The nearest solution, and the directions (N, k) that lead to others.
    guess = np.concatenate([at.z[support, 0], at.nu[:, 0]])
    miss = left[:, :rank].T @ (system @ guess - right)
    nearest = guess - directions[:rank].T @ (miss / sigma[:rank])
    z = np.zeros(len(support))
    z[support] = nearest[:count]
    if rank == len(sigma):
        return z, False
    free = np.zeros((len(z), len(sigma) - rank))
    free[support] = directions[rank:, :count].T
    falls = np.stack([(problem.skew @ column[:, None])[:, 0] for column in free.T], axis=1)
    changes = np.where(support[:, None], free, -falls)
    # Newton's method, damped as self-concordance asks.
    for _ in range(100):
        w = problem.simplices.spread(nearest[count:]) - (problem.skew @ z[:, None])[:, 0]
        relative = changes / np.where(support, z, w)[:, None]
        if not np.isfinite(relative).all():  # rounding of a wide range has put z on the boundary
            break
        step = np.linalg.lstsq(relative, np.ones(len(z)), rcond=None)[0]
        decrement = np.linalg.norm(relative @ step)
        z = z + free @ step / (1 + decrement if decrement > 0.1 else 1)
        if decrement < 1e-9:
            break
    return z, True
