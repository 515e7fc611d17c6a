from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from games import InputError, MatrixGame, PreferenceGame, SaddlePointGame, SkewGame, from_wins

unit = st.floats(0, 1)
payoffs = st.floats(-1e3, 1e3)
shapes = st.sampled_from([(1, 1), (2, 2), (3, 3), (5, 5), (2, 3, 3), (2, 1, 4, 4)])


def preference(upper: np.ndarray) -> np.ndarray:
    """The preference table with that upper triangle, its complement rounded as 1 - p."""
    upper = np.triu(upper, 1)
    lower = np.tril(1 - upper.swapaxes(-1, -2), -1)
    return upper + lower + 0.5 * np.eye(upper.shape[-1])


preferences = shapes.flatmap(lambda shape: arrays(float, shape, elements=unit)).map(preference)


# --- payoffs that make a game


@given(preferences)
def test_preference_game_adds_up_exactly(table: np.ndarray) -> None:
    game = PreferenceGame(table)
    total = game.payoff + game.payoff.swapaxes(-1, -2)
    np.testing.assert_array_equal(total, 1.0)
    assert game.payoff.shape == (*game.batch_shape, game.n, game.n)


@given(preferences, st.floats(-4e-7, 4e-7))
def test_rounding_is_corrected_and_nothing_else(table: np.ndarray, slip: float) -> None:
    off = np.triu(np.full_like(table, slip), 1) + table
    off = np.where((off < 0) | (off > 1), table, off)
    game = PreferenceGame(off)
    np.testing.assert_array_equal(game.payoff + game.payoff.swapaxes(-1, -2), 1.0)
    # half of the slip goes to each of a pair; the rest is rounding
    np.testing.assert_allclose(game.payoff, off, rtol=0, atol=abs(slip) / 2 + 1e-15)
    again = PreferenceGame(game.payoff)
    np.testing.assert_array_equal(again.payoff, game.payoff)


def test_pairs_that_fit_as_floats_keep_every_bit() -> None:
    table = np.array([[0.5, 0.1, 0.3], [0.9, 0.5, 0.2], [0.7, 0.8 + 1e-9, 0.5]])
    payoff = PreferenceGame(table).payoff
    assert payoff[0, 1] == 0.1  # 1 - 0.9 would be 0.09999999999999998
    assert payoff[0, 2] == 0.3
    assert payoff[1, 2] != 0.2


@given(preferences, st.randoms())
def test_permuted_tables_are_permuted_games(table: np.ndarray, random) -> None:
    order = list(range(table.shape[-1]))
    random.shuffle(order)
    permuted = PreferenceGame(table[..., order, :][..., order]).payoff
    expected = PreferenceGame(table).payoff[..., order, :][..., order]
    np.testing.assert_array_equal(permuted, expected)


@given(shapes.flatmap(lambda shape: arrays(float, shape, elements=payoffs)))
def test_skew_game_is_used_unchanged(table: np.ndarray) -> None:
    skew = table - table.swapaxes(-1, -2)
    game = SkewGame(skew)
    np.testing.assert_array_equal(game.payoff, skew)
    wide = SkewGame(skew + 1e-7 * np.abs(skew).max())
    np.testing.assert_array_equal(wide.payoff, -wide.payoff.swapaxes(-1, -2))


def test_kind_and_value() -> None:
    assert (PreferenceGame.kind, PreferenceGame.value) == ("preference", 0.5)
    assert (SkewGame.kind, SkewGame.value) == ("skew", 0.0)
    assert MatrixGame.kind == "zero_sum"


@pytest.mark.parametrize("game", [PreferenceGame, SkewGame, MatrixGame])
def test_payoff_is_shared_and_read_only(game) -> None:
    table = preference(np.full((2, 3, 3), 0.25))
    table = table - table.swapaxes(-1, -2) if game is SkewGame else table
    made = game(table)
    assert np.shares_memory(made.payoff, table)
    with pytest.raises(ValueError, match="read-only"):
        made.payoff[0, 0, 0] = 1.0
    table[0, 0, 0] = table[0, 0, 0]  # the caller's own array is still writeable


def test_other_types_and_orders_become_float64_in_c_order() -> None:
    table = np.array([[0, 2, -1], [5, 0, 3]], dtype=np.int8, order="F")
    game = MatrixGame(table, ("a", "b"), ("u", "v", "w"))
    assert game.payoff.dtype == np.float64
    assert game.payoff.flags.c_contiguous
    assert (game.m, game.n, game.batch_shape) == (2, 3, ())
    single = preference(np.array([[0.0, 1 / 3], [0.0, 0.0]])).astype(np.float32)
    assert PreferenceGame(single).payoff.sum() == 2.0


def test_the_checks_of_a_large_game_allocate_little() -> None:
    table = preference(np.random.default_rng(0).random((1000, 1000)))
    tracemalloc.start()
    PreferenceGame(table)
    _, exact = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    table[0, 1] += 1e-9
    tracemalloc.start()
    PreferenceGame(table)
    _, corrected = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # a handful of blocks of half a MiB: at n = 1000 that is about a quarter of the table
    assert exact < 0.5 * table.nbytes
    assert corrected < 1.5 * table.nbytes  # the corrected table is a new one


# --- tables that make none, and where they fail


def swapped(table: list, place: tuple[int, int], entry: float) -> list:
    table = [list(row) for row in table]
    table[place[0]][place[1]] = entry
    return table


FAIR = [[0.5, 0.2, 0.6], [0.8, 0.5, 0.1], [0.4, 0.9, 0.5]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PreferenceGame([]), "empty"),
        (lambda: PreferenceGame([[]]), "empty"),
        (lambda: PreferenceGame([0.5, 0.5]), r"shape \(2,\); at least 2 dimensions are needed"),
        (lambda: PreferenceGame([[0.5, 0.5]]), "1 x 2; preference needs a square table"),
        (lambda: PreferenceGame([[0.5, 0.5], [0.5]]), "rows of equal length"),
        (lambda: PreferenceGame([["a", "b"], ["c", "d"]]), "real numbers"),
        (lambda: PreferenceGame(np.full((2, 2), 0.5j)), "real numbers"),
        (lambda: PreferenceGame(FAIR, labels=("a", "b")), "2 labels for 3 actions"),
        (lambda: PreferenceGame(swapped(FAIR, (1, 2), np.nan)), "row 2, column 3 is nan"),
        (lambda: PreferenceGame(swapped(FAIR, (1, 2), np.inf)), "row 2, column 3 is inf"),
        (lambda: PreferenceGame(swapped(FAIR, (2, 0), 1.5)), "row 3, column 1 is 1.5; .*between 0"),
        (lambda: PreferenceGame([[0.5, -0.5], [1.5, 0.5]]), "row 1, column 2 is -0.5; .*between 0"),
        (lambda: PreferenceGame(swapped(FAIR, (1, 1), 0.0)), "entries on the diagonal must be 0.5"),
        (
            lambda: PreferenceGame(swapped(FAIR, (2, 0), 0.4001), labels=("x", "y", "z")),
            "row 'x', column 'z' is 0.6 and row 'z', column 'x' is 0.4001; .* add up to 1",
        ),
        (
            lambda: PreferenceGame(swapped(swapped(FAIR, (2, 0), 0.4001), (1, 0), 0.6)),
            "row 1, column 2 is 0.2 and row 2, column 1 is 0.6",  # the worst pair, not the first
        ),
        (
            lambda: PreferenceGame([[FAIR, FAIR], [FAIR, swapped(FAIR, (0, 2), 0.7)]]),
            "game 2, 2, row 1, column 3 is 0.7 and row 3, column 1 is 0.4",
        ),
        (lambda: SkewGame([[0, 1], [-2, 0]]), "row 1, column 2 is 1 .* negative"),
        (lambda: SkewGame([[0, 1e308], [1e308, 0]]), "negative"),
        (lambda: SkewGame([[1e-3, 1], [-1, 0]]), "row 1, column 1 is 0.001; .* must be 0"),
        (lambda: MatrixGame([[1, 2], [np.nan, 3]], ("a", "b")), "row 'b', column 1 is nan; .*fin"),
        (lambda: MatrixGame([[1, 2, 3]], ("a",), ("u", "v")), "2 labels for 3"),
    ],
)
def test_bad_tables_say_where(make, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_the_worst_place_is_found_in_any_block() -> None:
    table = preference(np.random.default_rng(1).random((700, 700)))  # eight blocks
    table[601, 42] = np.nan
    with pytest.raises(InputError, match="row 602, column 43 is nan"):
        PreferenceGame(table)
    many = np.tile(np.array(FAIR), (9000, 1, 1))  # two blocks of whole games
    many[8999, 2, 1] = 0.2
    with pytest.raises(InputError, match="game 9000, row 2, column 3"):
        PreferenceGame(many)
    many[10, 1, 0] = 0.0  # 0.8 too little in an earlier block, against 0.7
    with pytest.raises(InputError, match="game 11, row 1, column 2"):
        PreferenceGame(many)


# --- the saddle point game


@given(st.floats(0, 10), arrays(float, (2, 4, 3, 1), elements=st.floats(-5, 5)))
def test_saddle_gradient_is_that_of_f(alpha: float, points: np.ndarray) -> None:
    game, (x, y), step = SaddlePointGame(alpha), points, 0.5
    assert game.f(x, y).shape == (4, 3)
    # central differences of a quadratic are exact, up to rounding of values below 1000
    along_x = (game.f(x + step, y) - game.f(x - step, y)) / (2 * step)
    along_y = (game.f(x, y + step) - game.f(x, y - step)) / (2 * step)
    gradient_x, gradient_y = game.gradient(x, y)
    np.testing.assert_allclose(gradient_x[..., 0], along_x, atol=1e-11)
    np.testing.assert_allclose(gradient_y[..., 0], along_y, atol=1e-11)


@given(st.floats(0, 100))
def test_saddle_equilibrium_and_lipschitz(alpha: float) -> None:
    game = SaddlePointGame(alpha)
    x, y = game.equilibrium
    # alpha * x is at most 2, so the gradient is a sum of numbers of size one
    np.testing.assert_allclose(game.gradient(x, y), 0, atol=1e-13)
    linear = np.array([[alpha, 1.0], [-1.0, alpha]])
    np.testing.assert_allclose(game.lipschitz, np.linalg.norm(linear, 2), rtol=1e-14)
    origin, unit_x, unit_y = np.zeros(1), (np.ones(1), np.zeros(1)), (np.zeros(1), np.ones(1))
    at_origin = np.concatenate(game.gradient(origin, origin))
    columns = [np.concatenate(game.gradient(*u)) - at_origin for u in (unit_x, unit_y)]
    field = np.column_stack(columns) * [[1], [-1]]  # the sign of the maximizer's part is reversed
    np.testing.assert_allclose(field, linear, atol=1e-13)


def test_saddle_of_the_paper() -> None:
    truth, surrogate = SaddlePointGame(2.0), SaddlePointGame(1.0)
    np.testing.assert_allclose(np.ravel(truth.equilibrium), [0.6, -0.2], atol=1e-15)
    np.testing.assert_allclose(np.ravel(surrogate.equilibrium), [1.0, 0.0], atol=1e-15)
    assert truth.f(np.ones(1), np.ones(1)) == 0.0


@pytest.mark.parametrize("alpha", [-1.0, np.nan, np.inf])
def test_saddle_needs_a_convex_concave_f(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha"):
        SaddlePointGame(alpha)


# --- win counts

counts = st.one_of(st.integers(0, 50).map(float), st.floats(0, 50))
tables_of_counts = shapes.flatmap(lambda shape: arrays(float, shape, elements=counts)).map(
    lambda table: table * (1 - np.eye(table.shape[-1]))
)
priors = st.floats(1e-3, 10)


@given(tables_of_counts, priors)
def test_wins_give_a_preference_by_the_formula(wins: np.ndarray, prior: float) -> None:
    ties = np.floor(wins + wins.swapaxes(-1, -2))
    payoff = from_wins(wins, ties, prior).payoff
    np.testing.assert_array_equal(payoff + payoff.swapaxes(-1, -2), 1.0)
    assert ((payoff >= 0) & (payoff <= 1)).all()
    for place in np.ndindex(*wins.shape):
        *batch, i, j = place
        won, lost, tied = wins[*batch, i, j], wins[*batch, j, i], ties[*batch, i, j]
        share = (won + tied / 2 + prior) / (won + lost + tied + 2 * prior)
        # a few roundings of numbers in [0, 1]
        assert payoff[place] == pytest.approx(0.5 if i == j else share, abs=1e-15)


@given(tables_of_counts, priors, st.floats(0.1, 10))
def test_wins_have_no_unit_but_that_of_the_prior(wins, prior: float, factor: float) -> None:
    scaled = from_wins(factor * wins, prior=factor * prior).payoff
    np.testing.assert_allclose(scaled, from_wins(wins, prior=prior).payoff, rtol=0, atol=1e-14)


@given(tables_of_counts, priors)
def test_a_prior_pulls_towards_one_half(wins: np.ndarray, prior: float) -> None:
    near, far = (np.abs(from_wins(wins, prior=k * prior).payoff - 0.5) for k in (1, 2))
    assert (far <= near + 1e-15).all()  # rounding of a difference
    # |P - 1/2| <= w / (2 w + 4 prior) for w <= 50, and the rounding of P
    assert np.abs(from_wins(wins, prior=1e12).payoff - 0.5).max() <= 50 / 4e12 + 1e-16


@given(tables_of_counts)
def test_unplayed_pairs_are_never_called_even(wins: np.ndarray) -> None:
    played = wins + wins.swapaxes(-1, -2) > 0
    if (played | np.eye(wins.shape[-1], dtype=bool)).all():
        share = wins / np.where(played, wins + wins.swapaxes(-1, -2), 1.0)
        payoff = from_wins(wins).payoff
        # one rounding each, and half of one where the pair is made to add up
        np.testing.assert_allclose(payoff[played], share[played], rtol=0, atol=1e-15)
    else:
        with pytest.raises(InputError, match=r"never met; add a prior .*--prior"):
            from_wins(wins)


def test_ties_alone_are_games() -> None:
    np.testing.assert_array_equal(from_wins(np.zeros((2, 2)), [[0, 3], [3, 0]]).payoff, 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_wins([[0, -1], [2, 0]]), "row 1, column 2 is -1; counts must"),
        (lambda: from_wins([[0, np.nan], [2, 0]]), "row 1, column 2 is nan; counts must"),
        (lambda: from_wins([[0, np.inf], [2, 0]]), "row 1, column 2 is inf; counts must"),
        (lambda: from_wins([[0, 1], [2, 3]]), "row 2, column 2: wins of an action against itself"),
        (lambda: from_wins([[0, 1, 2], [2, 0, 1]]), "2 x 3; a table of wins needs a square"),
        (lambda: from_wins([[0, 1], [2, 0]], [[0, 1], [2, 0]]), "column 2: ties must be symmetric"),
        (lambda: from_wins([[0, 1], [2, 0]], [[1, 0], [0, 0]]), "ties of an action against itself"),
        (lambda: from_wins([[0, 1], [2, 0]], np.zeros((3, 3))), r"\(2, 2\) but ties \(3, 3\)"),
        (lambda: from_wins([[0, 1], [2, 0]], prior=0.0), "prior is 0.0; .* > 0"),
        (lambda: from_wins([[0, 1], [2, 0]], prior=np.nan), "prior is nan"),
        (
            lambda: from_wins([[0, 1, 0], [2, 0, 1], [0, 1, 0]], labels=("a", "b", "c")),
            "row 'a', column 'c': this pair never met",
        ),
        (lambda: from_wins([[0, 1], [2, 0]], labels=("a",)), "1 labels for 2"),
    ],
)
def test_bad_counts_say_where(make, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
