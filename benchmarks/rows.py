"""The benchmarks: one function per row of the table, with the sizes as arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from scipy.special import log_softmax

from games import PreferenceGame, zoo
from solvers import get_rule, solve
from solvers.convex import equilibrium_by_cvxpy
from solvers.divergences import reverse_kl
from solvers.equilibrium import equilibrium
from solvers.gap import duality_gap
from solvers.plays import Plays
from solvers.steps import step

from . import peers
from .contest import Contest, Peer, peak_bytes

SEED = 0


def large(sizes: Sequence[int] = (1000, 2000)) -> Iterator[Contest]:
    """The unregularized equilibrium of one large game."""
    for n, target in zip(sizes, (10, 12), strict=True):
        game = _game(n)
        yield Contest(
            f"unregularized equilibrium, n = {n}",
            lambda game=game: equilibrium(game).logp,
            (Peer("HiGHS interior point", partial(peers.highs_interior_point, game.payoff)),),
            partial(_gap, game.payoff),
            1e-12,
            target,
        )


def small(count: int = 1000, sample: int = 50) -> Iterator[Contest]:
    """The unregularized equilibria of many small games."""
    game = _game(5, count)
    payoffs = game.payoff
    nashpy = Peer(
        f"nashpy's LP, from {sample}",
        partial(peers.nashpy_program, payoffs[:sample]),
        sample / count,
    )
    one_by_one = (
        Peer("quantecon minmax", partial(peers.quantecon_minmax, payoffs)),
        Peer("quantecon lemke_howson", partial(peers.quantecon_lemke_howson, payoffs)),
    )
    compiled = Peer(
        "quantecon minmax in a loop compiled by numba",
        partial(peers.quantecon_compiled_loop, payoffs),
    )
    goals = (((nashpy,), 100, True), (one_by_one, 1.5, False), ((compiled,), None, False))
    for contestants, target, faster in goals:
        yield Contest(
            f"unregularized equilibria of {count:,} games, 5 × 5",
            lambda: equilibrium(game).logp,
            contestants,
            partial(_gap, payoffs),
            1e-12,
            target,
            faster,
        )


def regularized(
    cases: Sequence[tuple[int, float]] = ((1000, 0.1), (300, 0.01), (10, 0.01)),
) -> Iterator[Contest]:
    """The reverse-KL equilibrium of one game."""
    for (n, tau), target in zip(cases, (200, 20, 5), strict=True):
        game = _game(n)
        programs = (
            Peer("cvxpy, log_sum_exp", partial(peers.cvxpy_log_sum_exp, game.payoff, tau)),
            Peer(
                "cvxpy, solvers.convex",
                lambda game=game, tau=tau: equilibrium_by_cvxpy(game, reverse_kl, tau).logp,
            ),
        )
        yield Contest(
            f"reverse-KL equilibrium, n = {n}, τ = {tau}",
            lambda game=game, tau=tau: equilibrium(game, reverse_kl, tau).logp,
            programs,
            partial(_residual, game.payoff, tau),
            1e-10,
            target,
        )


def batch(count: int = 60_000, sample: int = 50, tau: float = 0.05) -> Iterator[Contest]:
    """The reverse-KL equilibria of many small games, one per prompt of a real run."""
    game = _game(5, count)
    few = game.payoff[:sample]

    def one_by_one() -> np.ndarray:
        return np.array([peers.cvxpy_log_sum_exp(payoff, tau) for payoff in few])

    share = sample / count
    once = partial(peers.cvxpy_with_a_parameter, few, tau)
    for peer, target in (
        (Peer(f"cvxpy, log_sum_exp, from {sample}", one_by_one, share), 1500),
        (Peer(f"cvxpy, compiled once, from {sample}", once, share), None),
    ):
        yield Contest(
            f"reverse-KL equilibria of {count:,} games, 5 × 5, τ = {tau}",
            lambda: equilibrium(game, reverse_kl, tau).logp,
            (peer,),
            partial(_residual, game.payoff, tau),
            1e-10,
            target,
        )


def gmmd_step(n: int = 4000, eta: float = 0.4, tau: float = 0.1) -> Iterator[Contest]:
    """One step of GMMD with reverse KL."""
    payoff, rng = _game(n).payoff, np.random.default_rng(SEED)
    logp, logp_ref = log_softmax(rng.normal(size=(2, n)), axis=-1)
    policy, rule = np.exp(logp), get_rule("gmmd", eta=eta, tau=tau)

    def ours() -> np.ndarray:
        plays = Plays.exact(payoff, logp, logp_ref)
        return step(rule(plays), plays)

    def error(found: np.ndarray) -> float:
        """Distance from the closed form, in logs."""
        theta = (logp + eta * (payoff @ policy) + eta * tau * logp_ref) / (1 + eta * tau)
        return np.abs(found - log_softmax(theta)).max()

    yield Contest(
        f"one GMMD step, reverse KL, n = {n}",
        ours,
        (Peer("the matrix-vector product alone", lambda: payoff @ policy, answers=False),),
        error,
        1e-12,
        1.15,
        faster=False,
    )


def memory(n: int = 4000, tau: float = 0.1) -> Iterator[Contest]:
    """Peak memory of `solve`, including the payoff matrix and its checks."""
    payoff = _game(n).payoff

    def ours() -> np.ndarray:
        game = PreferenceGame(payoff.copy())
        return solve(game, "gmmd", tau=tau, eta="theory", tol=1e-6).gap

    yield Contest(
        f"peak memory of solve, gmmd, n = {n}",
        ours,
        (Peer("the payoff matrix", payoff.copy, answers=False),),
        float,
        1e-6,
        2.5,
        faster=False,
        measure=peak_bytes,
    )


ROWS: dict[str, Callable[[], Iterator[Contest]]] = {
    "large": large,
    "small": small,
    "regularized": regularized,
    "batch": batch,
    "step": gmmd_step,
    "memory": memory,
}


def _game(n: int, count: int | None = None) -> PreferenceGame:
    """Uniform preferences: one game, or a batch of them."""
    rng = np.random.default_rng(SEED)
    return zoo.random(n, rng, () if count is None else (count,))


def _gap(payoff: np.ndarray, logp: np.ndarray) -> float:
    """The largest duality gap of the solved games."""
    solved = payoff if payoff.ndim == 2 else payoff[: len(logp)]
    return float(np.abs(duality_gap(PreferenceGame(solved), logp)).max())


def _residual(payoff: np.ndarray, tau: float, logp: np.ndarray) -> float:
    """max Σ |π − π′| with π′ ∝ exp(Pπ/τ), which equals π in equilibrium; μ is uniform."""
    policy = np.exp(logp)
    solved = payoff if payoff.ndim == 2 else payoff[: len(logp)]
    response = np.exp(log_softmax((solved @ policy[..., None])[..., 0] / tau, axis=-1))
    return float(np.abs(policy - response).sum(axis=-1).max())
