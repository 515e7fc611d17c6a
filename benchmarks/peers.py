"""Other libraries for the same tasks; each function returns log-probabilities.

nashpy and quantecon are imported in functions: they are installed only for the benchmarks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from scipy.optimize import linprog


def highs_interior_point(payoff: np.ndarray) -> np.ndarray:
    """(n, n) -> (n,): max v with xᵀP ≥ v, by HiGHS."""
    n = len(payoff)
    found = linprog(
        np.r_[np.zeros(n), -1.0],
        A_ub=np.c_[-payoff.T, np.ones(n)],
        b_ub=np.zeros(n),
        A_eq=np.r_[np.ones(n), 0.0][None],
        b_eq=[1.0],
        bounds=[(0, None)] * n + [(None, None)],
        method="highs-ipm",
    )
    return _log(found.x[:n])


def nashpy_program(payoffs: np.ndarray) -> np.ndarray:
    """(B, n, n) -> (B, n): nashpy's linear program, one game after the other."""
    import nashpy

    return _log(np.array([nashpy.Game(payoff - 0.5).linear_program()[0] for payoff in payoffs]))


def quantecon_minmax(payoffs: np.ndarray) -> np.ndarray:
    """(B, n, n) -> (B, n): quantecon's compiled simplex method, one game after the other."""
    from quantecon.optimize.minmax import minmax

    return _log(np.array([minmax(payoff)[1] for payoff in payoffs]))


def quantecon_lemke_howson(payoffs: np.ndarray) -> np.ndarray:
    """(B, n, n) -> (B, n): quantecon's compiled Lemke-Howson, one game after the other."""
    from quantecon.game_theory import NormalFormGame, lemke_howson

    return _log(np.array([lemke_howson(NormalFormGame(payoff))[0] for payoff in payoffs]))


def quantecon_compiled_loop(payoffs: np.ndarray) -> np.ndarray:
    """(B, n, n) -> (B, n): the same simplex method, called from a loop compiled by numba."""
    return _log(_compiled_loop()(payoffs))


@functools.cache
def _compiled_loop() -> Callable[[np.ndarray], np.ndarray]:
    from numba import njit
    from quantecon.optimize.minmax import minmax

    @njit
    def loop(payoffs):
        policies = np.empty(payoffs.shape[:2])
        for i in range(len(payoffs)):
            policies[i] = minmax(payoffs[i])[1]
        return policies

    return loop


def cvxpy_log_sum_exp(payoff: np.ndarray, tau: float) -> np.ndarray:
    """(n, n) -> (n,): min_x τ Σ x log x + τ log Σ exp(−(xᵀA)/τ), in the straightforward form."""
    import cvxpy as cp

    x = cp.Variable(len(payoff))
    cp.Problem(_objective(x, 0.5 - payoff.T, tau), [cp.sum(x) == 1]).solve(solver=cp.CLARABEL)
    return _log(x.value)


def cvxpy_with_a_parameter(payoffs: np.ndarray, tau: float) -> np.ndarray:
    """(B, n, n) -> (B, n): the same, compiled once for all games."""
    import cvxpy as cp

    problem, losses, x = _parametric(payoffs.shape[-1], tau)
    policies = []
    for payoff in payoffs:
        losses.value = 0.5 - payoff.T
        problem.solve(solver=cp.CLARABEL)
        policies.append(x.value)
    return _log(np.array(policies))


@functools.cache
def _parametric(n: int, tau: float):
    import cvxpy as cp

    x, losses = cp.Variable(n), cp.Parameter((n, n))
    return cp.Problem(_objective(x, losses, tau), [cp.sum(x) == 1]), losses, x


def _objective(x, losses, tau: float):
    import cvxpy as cp

    return cp.Minimize(-tau * cp.sum(cp.entr(x)) + tau * cp.log_sum_exp(losses @ x / tau))


def _log(policy: np.ndarray) -> np.ndarray:
    """Log-probabilities of a solver's policy, whose entries may be −1e-12 or add up to 1 + 1e-9."""
    policy = np.maximum(policy, 0)
    with np.errstate(divide="ignore"):
        return np.log(policy / policy.sum(axis=-1, keepdims=True))
