"""Resolvents of skew-symmetric tables against dense linear algebra; the simplex method; one game
and many take different code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers.simplex import simplex
from solvers.skew import Bipartite, Simplices, Skew, TangentResolvent, pick
from tests.strategies import seeds

batches = st.sampled_from([1, 4])


def random_skew(rng, n: int, batch: int) -> Skew:
    table = rng.normal(size=(n, n, batch))
    return Skew(table - table.swapaxes(0, 1))


def dense(skew) -> np.ndarray:
    """(B, N, N)"""
    return np.moveaxis(skew.whole.payoff, -1, 0)


@given(seeds, st.integers(1, 5), st.integers(1, 5), batches)
def test_products_and_resolvents(seed, m, n, batch):
    rng = np.random.default_rng(seed)
    for skew in (random_skew(rng, m + n, batch), Bipartite(rng.normal(size=(m, n, batch)))):
        z, r = rng.normal(size=(m + n, batch)), rng.normal(size=(m + n, 3, batch))
        product = np.moveaxis(skew @ z, -1, 0)
        assert product == pytest.approx((dense(skew) @ z.T[..., None])[..., 0], abs=1e-13)
        h = rng.uniform(0.1, 10, size=(m + n, batch))
        x = np.moveaxis(skew.resolvent(h)(r), -1, 0)
        matrix = np.eye(m + n) / h.T[:, None] - dense(skew)
        # Condition numbers up to 100², each digit of which is lost.
        assert x == pytest.approx(np.linalg.solve(matrix, np.moveaxis(r, -1, 0)), abs=1e-10)


@given(seeds, batches)
def test_a_zero_of_h_is_a_zero_of_the_solution(seed, batch):
    rng = np.random.default_rng(seed)
    for skew in (random_skew(rng, 5, batch), Bipartite(rng.normal(size=(2, 3, batch)))):
        h, r = rng.uniform(0.1, 10, size=(5, batch)), rng.normal(size=(5, 1, batch))
        h[[0, 3]] = 0
        x = skew.resolvent(h)(r)
        assert not x[[0, 3]].any()
        kept = [1, 2, 4]
        for game in range(batch):
            matrix = np.diag(1 / h[kept, game]) - dense(skew)[game][np.ix_(kept, kept)]
            assert x[kept, 0, game] == pytest.approx(
                np.linalg.solve(matrix, r[kept, 0, game]), abs=1e-10
            )


def test_a_wide_range_of_h_does_not_spoil_the_solution():
    """Eighteen orders of magnitude, as at the end of a path, with pivoting on the scaled matrix."""
    rng = np.random.default_rng(0)
    skew = random_skew(rng, 40, 1)
    h = np.where(np.arange(40) < 21, 1e9, 1e-9)[:, None]
    r = rng.normal(size=(40, 1, 1))
    x = skew.resolvent(h)(r)
    miss = x[:, 0] / h - skew @ x[:, 0] - r[:, 0]
    # One of 21 skew dimensions has no partner: there x is of order 1e9, and rounding of order 1e-7.
    assert np.abs(miss[:21]).max() <= 1e-6


@given(seeds, st.sampled_from([(5,), (2, 3)]), batches)
def test_tangent_resolvent(seed, sizes, batch):
    rng = np.random.default_rng(seed)
    skew = (
        random_skew(rng, 5, batch) if len(sizes) == 1 else Bipartite(rng.normal(size=(2, 3, batch)))
    )
    simplices = Simplices(sizes)
    h, first, second = (rng.uniform(0.1, 10, size=(5, batch)) for _ in range(3))
    solve = TangentResolvent(skew, simplices, h, first)
    for r, (x, nu) in ((first, solve.first), (second, solve(second))):
        assert simplices.total(x) == pytest.approx(np.zeros((len(sizes), batch)), abs=1e-10)
        assert x / h - skew @ x + simplices.spread(nu) == pytest.approx(r, abs=1e-10)


def test_picked_games_stay_contiguous():
    array = np.arange(24.0).reshape(2, 3, 4)
    mask = np.array([True, False, True, True])
    for games in (mask, np.flatnonzero(mask)):
        assert np.array_equal(pick(array, games), array[..., games])
        assert pick(array, games).flags.c_contiguous


@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_simplex_has_no_duality_gap(seed, m, n):
    payoff = np.random.default_rng(seed).uniform(1, 3, size=(m, n, 8))
    x, y = simplex(payoff)
    assert x.sum(axis=0) == pytest.approx(np.ones(8))
    assert x.min() >= 0 <= y.min()
    best = (payoff * y).sum(axis=1).max(axis=0)
    worst = (payoff * x[:, None]).sum(axis=0).min(axis=0)
    assert best == pytest.approx(worst, abs=1e-12)  # a dozen pivots on numbers of order 1
