"""Equilibria by cvxpy and by linear programming: slow, independent checks of the exact ones.

    max_x min_y xᵀAy − τR(x, μ₁) + τR(y, μ₂)  =  −min_x τR(x, μ₁) + (τR)*(−Aᵀx),

a convex program in x. The conjugate over the simplex, (τR)*(w) = min_ν ν + τ Σ μ f*((w − ν)/τ),
is written out for each f; that of a sum is the infimal convolution of its terms. The column player
solves the same with Aᵀ and the sign changed; in a symmetric game both are one.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from games import MatrixGame, SymmetricGame
from games.errors import InputError

from .divergences import Divergence
from .equilibrium import Equilibrium, equilibrium, references_of
from .gap import duality_gap
from .kernels import CHI2, FORWARD_KL, HELLINGER, JS, REVERSE_KL, Kernel, alpha_kernel
from .loop import Status


def equilibrium_by_cvxpy(
    game: SymmetricGame | MatrixGame,
    regularizer: Divergence | None = None,
    tau: float = 0.0,
    reference: Any = None,
) -> Equilibrium:
    """The equilibrium by cvxpy with Clarabel, to about 1e-8; one game, not a batch.

    Zeros become tiny probabilities. `unique` is taken from the exact solver. Raises
    InputError for a batch, or where the solver fails.
    """
    _one_game(game)
    if tau > 0 and regularizer is None:
        raise InputError("tau > 0 needs a regularizer, such as reverse_kl")
    for _, kernel in regularizer.terms if regularizer is not None else ():
        if kernel not in (REVERSE_KL, FORWARD_KL, CHI2, JS, HELLINGER):
            _alpha(kernel)
    began = time.perf_counter()
    mu, nu = (np.exp(theta) for theta in references_of(game, reference))
    table = game.payoff - game.value if isinstance(game, SymmetricGame) else game.payoff
    x = _best(table, regularizer, tau, mu, nu)
    y = x if isinstance(game, SymmetricGame) else _best(-table.T, regularizer, tau, nu, mu)
    return _answer(game, x, y, regularizer, tau, reference, "cvxpy", began, 1e-5)


def equilibrium_by_lp(
    game: SymmetricGame | MatrixGame,
    regularizer: Divergence | None = None,
    tau: float = 0.0,
    reference: Any = None,
) -> Equilibrium:
    """The unregularized equilibrium, a vertex of the optimal face, by scipy's HiGHS.

    One game, not a batch. Raises InputError for τ > 0 or a batch.
    """
    from scipy.optimize import linprog

    _one_game(game)
    if tau > 0:
        raise InputError("method lp has no regularizer: use exact or cvxpy")
    began = time.perf_counter()

    def best(table: np.ndarray) -> np.ndarray:
        """max v with xᵀA ≥ v: variables (x, v)."""
        m, n = table.shape
        found = linprog(
            np.r_[np.zeros(m), -1.0],
            A_ub=np.c_[-table.T, np.ones(n)],
            b_ub=np.zeros(n),
            A_eq=np.r_[np.ones(m), 0.0][None],
            b_eq=[1.0],
            bounds=[(0, None)] * m + [(None, None)],
        )
        if found.x is None:
            raise InputError(f"HiGHS gave no answer: {found.message}")
        return found.x[:m]

    x = best(game.payoff)
    y = x if isinstance(game, SymmetricGame) else best(-game.payoff.T)
    return _answer(game, x, y, None, 0.0, reference, "lp", began, 1e-6)


def _one_game(game: SymmetricGame | MatrixGame) -> None:
    if game.batch_shape:
        raise InputError("this method solves one game, not a batch: use the exact one")


def _answer(game, x, y, regularizer, tau, reference, method, began, tolerance) -> Equilibrium:
    seconds = time.perf_counter() - began
    symmetric = isinstance(game, SymmetricGame)
    with np.errstate(divide="ignore"):
        logp, opponent = (np.log(np.maximum(p, 0) / np.maximum(p, 0).sum()) for p in (x, y))
    mu, nu = references_of(game, reference)
    gap = duality_gap(
        game, logp, None if symmetric else opponent, regularizer, tau, mu if symmetric else (mu, nu)
    )
    return Equilibrium(
        logp,
        opponent,
        np.array(np.exp(logp) @ game.payoff @ np.exp(opponent)),
        gap,
        np.array(True) if tau > 0 else equilibrium(game).unique,
        method,
        seconds,
        np.array(1),
        Status.CONVERGED if gap <= tolerance * max(1.0, np.ptp(game.payoff)) else Status.MAX_STEPS,
    )


def _best(table: np.ndarray, regularizer, tau: float, mu: np.ndarray, nu: np.ndarray) -> np.ndarray:
    """(m, n) -> (m,): the row player's x, minimizing τR(x, μ) + (τR)*(−Aᵀx) over the simplex."""
    import cvxpy as cp

    x = cp.Variable(len(mu), nonneg=True)
    losses = -table.T @ x
    if regularizer is None or tau == 0:
        objective = cp.max(losses)
    else:
        objective = tau * _value(regularizer, x, mu) + _conjugate(regularizer, losses, nu, tau)
    problem = cp.Problem(cp.Minimize(objective), [cp.Zero(cp.sum(x) - 1)])
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            problem.solve(solver=cp.CLARABEL)
    except (cp.SolverError, ValueError) as error:  # ValueError: data that overflow
        reason = str(error).splitlines()[0]
        raise InputError(f"cvxpy gave no answer ({reason}): use the exact method") from None
    if x.value is None:
        raise InputError(f"cvxpy gave no answer ({problem.status}): use the exact method")
    return x.value


def _value(regularizer: Divergence, x, mu: np.ndarray):
    """R(x, μ) as a cvxpy expression."""
    import cvxpy as cp

    total = regularizer.tilt * (np.log(mu) @ x)
    for c, kernel in regularizer.terms:
        total += c * cp.sum(_divergence(kernel, x, mu))
    return total


def _conjugate(regularizer: Divergence, w, mu: np.ndarray, tau: float):
    """(τR)*(w) over the simplex: min_ν ν + τ min_{Σ s_k = (w − ν)/τ} Σ_k c_k Σ μ f_k*(s_k/c_k)."""
    import cvxpy as cp

    nu = cp.Variable()
    left = (w - nu) / tau - regularizer.tilt * np.log(mu)
    total = nu
    for c, kernel in regularizer.terms[:-1]:
        part = cp.Variable(len(mu))
        total += tau * c * (mu @ _fenchel(kernel, part / c))
        left = left - part
    c, kernel = regularizer.terms[-1]
    return total + tau * c * (mu @ _fenchel(kernel, left / c))


def _divergence(kernel: Kernel, x, mu: np.ndarray):
    """μ f(x/μ), elementwise."""
    import cvxpy as cp

    if kernel == REVERSE_KL:
        return cp.rel_entr(x, mu)
    if kernel == FORWARD_KL:
        return cp.rel_entr(mu, x)
    if kernel == CHI2:
        return cp.square(x - mu) / (2 * mu)
    if kernel == JS:
        middle = (x + mu) / 2
        return (cp.rel_entr(x, middle) + cp.rel_entr(mu, middle)) / 2
    if kernel == HELLINGER:
        return (x + mu) / 2 - cp.multiply(np.sqrt(mu), cp.sqrt(x))
    a = _alpha(kernel)
    powers = cp.multiply(mu ** (1 - a), cp.power(x, a))
    return (powers - a * x + (a - 1) * mu) / (a * (a - 1))


def _fenchel(kernel: Kernel, s):
    """f*(s) = sup_{u ≥ 0} us − f(u), elementwise."""
    import cvxpy as cp

    if kernel == REVERSE_KL:
        return cp.exp(s - 1)
    if kernel == FORWARD_KL:
        return -1 - cp.log(-s)
    if kernel == CHI2:
        return (cp.square(cp.pos(1 + s)) - 1) / 2
    if kernel == JS:
        return -cp.log(2 - cp.exp(2 * s)) / 2
    if kernel == HELLINGER:
        return (cp.inv_pos(1 - 2 * s) - 1) / 2
    a = _alpha(kernel)
    base = 1 + (a - 1) * s
    return (cp.power(cp.pos(base) if a > 1 else base, a / (a - 1)) - 1) / a


def _alpha(kernel: Kernel) -> float:
    """a of an α-divergence. Raises InputError for a kernel without a convex program."""
    prefix, _, number = kernel.name.partition(":")
    if prefix == "alpha" and kernel == alpha_kernel(float(number)):
        return float(number)
    raise InputError(
        f"regularizer '{kernel.name}' has no cvxpy program: use the exact method, or a built-in one"
    )
