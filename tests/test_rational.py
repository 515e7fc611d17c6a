"""Zero-sum games with a wide range of payoffs: exact arithmetic, and when it is used."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from games import MatrixGame, PreferenceGame, SkewGame
from solvers import Status, parse
from solvers.equilibrium import equilibrium
from solvers.rational import LARGEST, exact_equilibrium

# The tolerance of a gap, 1e-12 of |payoff - value| in play; |value| can be as large as the payoffs.
ALLOWED = 4e-12
wide = st.builds(lambda digits, power: digits * 10.0**power, st.integers(-9, 9), st.integers(0, 14))
shapes = st.tuples(st.integers(1, 5), st.integers(1, 5))
wide_tables = shapes.flatmap(lambda shape: arrays(float, shape, elements=wide))
# Few different entries: ties, and faces of many equilibria.
degenerate = shapes.flatmap(
    lambda shape: arrays(float, shape, elements=st.integers(-1, 2).map(float))
)


def exact_gap(payoff: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The duality gap, in fractions, and the mean |payoff| of the best responses."""
    x, y = ([Fraction(float(p)) for p in policy] for policy in (x, y))
    x, y = ([p / sum(policy) for p in policy] for policy in (x, y))
    table = [[Fraction(float(entry)) for entry in row] for row in payoff]
    columns = [[-entry for entry in column] for column in zip(*table, strict=True)]
    gap, size = Fraction(0), Fraction(0)
    for payoffs, opponent in ((table, y), (columns, x)):
        means = [sum(a * q for a, q in zip(row, opponent, strict=True)) for row in payoffs]
        best = max(range(len(means)), key=means.__getitem__)
        gap += means[best]
        size += sum(abs(a) * q for a, q in zip(payoffs[best], opponent, strict=True))
    return float(gap), float(size)


@pytest.mark.parametrize(
    ("payoff", "x", "y", "value"),
    [
        # x = (1 + 1e12, 1)/(2 + 1e12), y the same, value 1/(2 + 1e12)
        ([[0, 1], [1, -1e12]], [1, 1e-12], [1, 1e-12], 1 / (2 + 1e12)),
        # the third row is played by some equilibria, with at most 6e-13
        ([[3, -1, 2], [-2, 4, 1], [1, 1, -1e12]], [0.6, 0.4, 3e-13], [0.5, 0.5, 0], 1),
        ([[1e12, 1e12, 1e12], [3, -1, 2], [-2, 4, 1]], [1, 0, 0], None, 1e12),
        ([[0, 1], [-1, -1e12]], [1, 0], [1, 0], 0),
        # x = (3, 6e9)/(6e9 + 3), y = (3e9 + 2, 3e9 + 1)/(6e9 + 3)
        ([[3e9, -3e9], [-1, 2]], [3 / (6e9 + 3), 6e9 / (6e9 + 3)], None, 3e9 / (6e9 + 3)),
        ([[1e-9, 0], [0, 1e9]], [1, 1e-18], [1, 1e-18], 1e-9),
    ],
)
def test_wide_ranges_are_right(payoff, x, y, value) -> None:
    found = equilibrium(MatrixGame(np.array(payoff, float)))
    assert found.status is Status.CONVERGED
    # The entries are correctly rounded; those of the face to the tolerance of its center.
    np.testing.assert_allclose(found.policy, x, rtol=1e-8)
    if y is not None:
        np.testing.assert_allclose(found.opponent_policy, y, rtol=1e-8)
    assert float(found.value) == pytest.approx(value, rel=1e-8, abs=0)


def test_a_pair_of_1e15_in_a_skew_game() -> None:
    found = equilibrium(SkewGame(np.array([[0, 1, -1], [-1, 0, 1e15], [1, -1e15, 0]])))
    np.testing.assert_allclose(found.policy, [1, 1e-15, 1e-15], rtol=1e-12)
    assert found.unique


def test_uniqueness_with_a_wide_range() -> None:
    """A loss of 1 excludes an equilibrium although other payoffs are 1e12."""
    found = equilibrium(MatrixGame(np.array([[0, 1], [-1, -1e12]])))
    assert found.unique
    assert found.duality_gap == 0
    payoff = np.array([[-1, 3e11, 3e11], [2e11, 1, 0], [-2e11, -1, 1]])
    assert equilibrium(MatrixGame(payoff)).unique


@given(wide_tables)
@settings(max_examples=150)
def test_converged_means_right(payoff: np.ndarray) -> None:
    found = equilibrium(MatrixGame(payoff))
    assert found.status is Status.CONVERGED
    gap, size = exact_gap(payoff, found.policy, found.opponent_policy)
    assert gap <= ALLOWED * size


@given(wide_tables)
@settings(max_examples=50)
def test_converged_means_right_in_skew_games(payoff: np.ndarray) -> None:
    n = min(payoff.shape)
    skew = payoff[:n, :n] - payoff[:n, :n].T
    found = equilibrium(SkewGame(skew))
    assert found.status is Status.CONVERGED
    gap, size = exact_gap(skew, found.policy, found.policy)
    assert gap <= ALLOWED * size


@given(degenerate)
@settings(max_examples=150)
def test_it_agrees_with_the_interior_point_method(payoff: np.ndarray) -> None:
    """Policies at the analytic center, the value, and whether there are several."""
    found = equilibrium(MatrixGame(payoff))
    x, y, value, unique = exact_equilibrium(payoff)
    # Both centers are found to 1e-9 in Newton's decrement, quadratically.
    np.testing.assert_allclose(x, found.policy, atol=1e-9)
    np.testing.assert_allclose(y, found.opponent_policy, atol=1e-9)
    assert value == pytest.approx(float(found.value), abs=1e-12)
    assert unique == bool(found.unique)


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1.0, 1e150, 1e300])
def test_any_unit_of_the_payoffs(scale: float) -> None:
    payoff = np.array([[3, -1, 2], [-2, 4, 1]]) * scale
    found = equilibrium(MatrixGame(payoff))
    x, y, value, unique = exact_equilibrium(payoff)
    for policies in ((x, y), (found.policy, found.opponent_policy)):
        np.testing.assert_allclose(policies[0], [0.6, 0.4], rtol=1e-12)
        np.testing.assert_allclose(policies[1], [0.5, 0.5, 0], rtol=1e-12, atol=1e-15)
    assert value == pytest.approx(scale, rel=1e-15)
    assert found.status is Status.CONVERGED
    assert unique


def test_a_batch_has_only_its_doubtful_games_solved_again(monkeypatch) -> None:
    payoff = np.array([[[3.0, -1, 2], [-2, 4, 1]], [[0, 1, 2], [1, -1e12, 2]]])
    solved = []

    def counted(table: np.ndarray):
        solved.append(table)
        return exact_equilibrium(table)

    monkeypatch.setattr("solvers.rational.exact_equilibrium", counted)
    found = equilibrium(MatrixGame(payoff))
    np.testing.assert_array_equal(solved, payoff[1:])
    np.testing.assert_allclose(found.policy, [[0.6, 0.4], [1, 1e-12]], rtol=1e-8)
    assert found.status is Status.CONVERGED


def test_too_large_a_game_is_right_or_stopped_at_its_gap() -> None:
    rng = np.random.default_rng(0)
    n = LARGEST // 2 + 4
    payoff = rng.normal(size=(n, n)) * 10.0 ** rng.integers(0, 12, (n, n))
    found = equilibrium(MatrixGame(payoff))
    gap, size = exact_gap(payoff, found.policy, found.opponent_policy)
    if found.status is Status.CONVERGED:
        assert gap <= ALLOWED * size
    else:
        # The gap that is reported is the one that the policies have.
        assert float(found.duality_gap) == pytest.approx(gap, rel=1e-6)


def test_tolerances_are_in_units_of_the_temperature_or_of_the_payoffs() -> None:
    payoff = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.6], [0.8, 0.4, 0.5]])
    for game in (PreferenceGame(payoff), SkewGame(payoff - 0.5)):
        found = equilibrium(game, parse("reverse_kl"), tau=1e6)
        assert found.status is Status.CONVERGED
        np.testing.assert_allclose(found.policy, 1 / 3, rtol=1e-6)


def test_a_range_beyond_floats_gives_an_equilibrium_without_its_center() -> None:
    """The relative changes towards the center are Fractions of more than 1e308."""
    rows = [
        [1e300, 7e301, -1e300, 3e-310],
        [-1.0, -1.0, 0.0, 0.0],
        [1e-300, 1e300, -1e300, 3e-310],
        [1e302, 0.0, 1e302, 3e-310],
    ]
    found = equilibrium(MatrixGame(np.array(rows)))
    assert found.duality_gap == 0
    assert not found.unique
    assert found.policy.sum() == pytest.approx(1, abs=1e-15)
