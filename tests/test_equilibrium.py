"""Exact equilibria: certificates first, then known answers, symmetries, batches and limits."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from games import InputError, MatrixGame, PreferenceGame, SkewGame, zoo
from solvers import Status, duality_gap, parse
from solvers.equilibrium import equilibrium
from tests.strategies import SPECS, random_game, random_policy, seeds, sizes

REVERSE_KL = parse("reverse_kl")
DATA = Path(__file__).parents[2] / "shared" / "data"

# Rounding: payoffs of order 1 against policies of a few hundred actions, and three digits to spare.
ROUNDING = 1e-13


def random_matrix(seed: int, m: int, n: int) -> MatrixGame:
    return MatrixGame(np.random.default_rng(seed).normal(size=(m, n)))


def shared(name: str) -> list[dict]:
    """The known answers beside the checkout, where there are any."""
    path = DATA / name
    return json.loads(path.read_text()) if path.exists() else []


def certify(game, found, regularizer=None, tau=0.0, references=None, tolerance=1e-12) -> None:
    """Feasible, no gap, and optimal action by action: w = ν + τ∇R − payoff ≥ 0 and w ∘ π = 0."""
    assert found.status is Status.CONVERGED
    if isinstance(game, MatrixGame):
        pairs = references or (None, None)
        gap = duality_gap(game, found.logp, found.opponent_logp, regularizer, tau, references)
        rows = game.payoff @ found.opponent_policy
        columns = -game.payoff.T @ found.policy
        players = [(found.logp, rows, pairs[0]), (found.opponent_logp, columns, pairs[1])]
        assert found.value == pytest.approx(found.policy @ rows, abs=tolerance)
    else:
        gap = duality_gap(game, found.logp, None, regularizer, tau, references)
        players = [(found.logp, game.payoff @ found.policy, references)]
        assert found.logp is found.opponent_logp
        assert found.value == game.value
    assert abs(gap) <= tolerance
    assert found.duality_gap == pytest.approx(gap, abs=tolerance)
    for logp, payoffs, mu in players:
        policy = np.exp(logp)
        assert policy.sum() == pytest.approx(1, abs=ROUNDING)
        w = -payoffs
        if regularizer is not None:
            mu = np.full(len(logp), -np.log(len(logp))) if mu is None else mu
            w = w + tau * regularizer.gradient(logp, mu)
        played = policy > 0
        w = w - (policy[played] @ w[played])
        # The gap is of second order in w at τ > 0, and its sum at τ = 0.
        assert policy[played] @ np.abs(w[played]) <= 1e-10 + tolerance
        assert np.all(w[~played] >= -1e-10 - tolerance)
        if tau > 0:  # unweighted: the logs of tiny probabilities are right, too
            assert np.abs(w[played]).max() <= 1e-8


@pytest.mark.parametrize("n", [5, 30])
@pytest.mark.parametrize("spec", SPECS)
def test_every_divergence_from_hot_to_cold(spec, n):
    game, mu, regularizer = random_game(1, n), random_policy(2, n), parse(spec)
    for tau in (10.0, 0.5, 0.05, 1e-3):
        certify(game, equilibrium(game, regularizer, tau, mu), regularizer, tau, mu)


@pytest.mark.parametrize("spec", SPECS)
def test_every_divergence_in_zero_sum_games(spec):
    game, regularizer = random_matrix(3, 4, 6), parse(spec)
    references = random_policy(4, 4), random_policy(5, 6)
    for tau in (3.0, 0.2, 0.01):
        found = equilibrium(game, regularizer, tau, references)
        certify(game, found, regularizer, tau, references)


@pytest.mark.parametrize("spec", ["reverse_kl", "chi2", "forward_kl", "0.2*entropy+js"])
def test_a_hundred_actions_at_one_thousandth(spec):
    game, mu, regularizer = random_game(6, 100), random_policy(7, 100), parse(spec)
    certify(game, equilibrium(game, regularizer, 1e-3, mu), regularizer, 1e-3, mu)


def test_references_that_almost_exclude_actions():
    """Down to e^-20: what wins all the same has to grow by eight orders of magnitude."""
    game, mu = random_game(8, 30), random_policy(9, 30, concentration=0.1)
    assert mu.min() < -19
    specs = ["reverse_kl", "chi2", "js", "forward_kl", "1e-6*entropy+js"]
    for spec, tau in itertools.product(specs, [1.0, 0.01]):
        found = equilibrium(game, parse(spec), tau, mu)
        certify(game, found, parse(spec), tau, mu)


@pytest.mark.parametrize(
    "game",
    [
        random_game(10, 2),
        random_game(11, 7),
        random_game(12, 40),
        random_game(13, 150),
        random_matrix(14, 1, 1),
        random_matrix(15, 1, 5),
        random_matrix(16, 6, 3),
        random_matrix(17, 40, 70),
        random_matrix(18, 70, 40),
        MatrixGame(1e6 * random_matrix(19, 5, 5).payoff),
        MatrixGame(1e-6 * random_matrix(19, 5, 5).payoff + 1e3),
        *(zoo.get(name) for name in ("rps", "league", "blotto", "matching_pennies")),
    ],
    ids=lambda game: f"{type(game).__name__}{game.payoff.shape}",
)
def test_without_a_regularizer(game):
    # 1e-12 in units of the payoff's range: 3e6 once, and rounding of 1e3 another time.
    certify(game, equilibrium(game), tolerance=1e-12 * max(1.0, np.abs(game.payoff).max()))


@pytest.mark.parametrize(
    ("spec", "tau", "n", "most"),
    [
        (None, 0.0, 150, 10),
        ("reverse_kl", 0.1, 100, 4),
        ("reverse_kl", 1e-3, 100, 16),
        ("js", 0.01, 30, 18),
        ("chi2", 1e-3, 30, 12),
        ("forward_kl", 1e-3, 30, 14),
    ],
)
def test_few_linear_systems_are_enough(spec, tau, n, most):
    """Quadratic convergence near the end, and long steps along the path: as measured, + 20 %."""
    systems = [equilibrium(random_game(s, n), spec and parse(spec), tau).iterations for s in (1, 2)]
    assert max(systems) <= most


@pytest.mark.slow
def test_two_thousand_actions_without_a_regularizer():
    game = random_game(20, 2000)
    certify(game, equilibrium(game))


@pytest.mark.slow
def test_a_thousand_actions_at_one_ten_thousandth():
    game, mu = random_game(21, 1000), random_policy(22, 1000)
    for tau in (0.1, 1e-4):
        certify(game, equilibrium(game, REVERSE_KL, tau, mu), REVERSE_KL, tau, mu)


def test_a_large_constant_costs_only_the_digits_that_it_takes():
    """1e3 + 1e-6·payoff: rounding of 1e3 is 1e-7 of the payoffs' range."""
    small = random_matrix(19, 5, 5)
    found = equilibrium(MatrixGame(1e3 + 1e-6 * small.payoff))
    assert found.policy == pytest.approx(equilibrium(small).policy, abs=1e-5)


def test_a_reference_changes_nothing_without_a_regularizer():
    for game in (random_game(30, 6), SkewGame(np.zeros((5, 5)))):
        found = equilibrium(game, None, 0.0, random_policy(31, game.n))
        assert np.array_equal(found.logp, equilibrium(game).logp)


KNOWN = [
    (SkewGame([[0, -3, 3], [3, 0, -1], [-3, 1, 0]]), [1 / 7, 3 / 7, 3 / 7], None, 0),  # ssokota/mmd
    (zoo.get("biased_rps"), [1 / 16, 5 / 8, 5 / 16], None, 0.5),  # OpenSpiel, lp_solver_test
    (MatrixGame(np.diag([1.0, 2, 4])), [4 / 7, 2 / 7, 1 / 7], [4 / 7, 2 / 7, 1 / 7], 4 / 7),
    (MatrixGame([[2, 1, 5], [-3, -4, -2]]), [1, 0], [0, 1, 0], 1),  # OpenSpiel, a pure saddle
    (  # Cai et al., Last-Iterate Convergence Properties of Regret-Matching Algorithms in Games
        MatrixGame([[3, 0, -3], [0, 3, -4], [0, 0, 1]]),
        [1 / 12, 1 / 12, 10 / 12],
        [1 / 3, 5 / 12, 1 / 4],
        1 / 4,
    ),
]


@pytest.mark.parametrize(("game", "policy", "opponent", "value"), KNOWN)
def test_known_equilibria(game, policy, opponent, value):
    found = equilibrium(game)
    certify(game, found)
    assert found.unique
    assert found.policy == pytest.approx(policy, abs=ROUNDING)
    assert found.opponent_policy == pytest.approx(opponent or policy, abs=ROUNDING)
    assert found.value == pytest.approx(value, abs=ROUNDING)


@pytest.mark.parametrize("known", shared("known_games.json"), ids=lambda known: known["name"])
def test_known_games_beside_the_checkout(known):
    payoff = np.array(known["payoff"])
    games = [MatrixGame(payoff)]
    if payoff.shape[0] == payoff.shape[1]:
        games += [SkewGame(payoff)] if np.array_equal(payoff, -payoff.T) else []
        games += [PreferenceGame(payoff)] if np.allclose(payoff + payoff.T, 1) else []
    for game in games:
        found = equilibrium(game)
        certify(game, found, tolerance=1e-12 * max(1.0, np.abs(payoff).max()))
        assert found.value == pytest.approx(known["value"], abs=ROUNDING)
        assert bool(found.unique) is known["unique"]
        if known["unique"]:
            assert found.policy == pytest.approx(known["row_ne"], abs=ROUNDING)
            assert found.opponent_policy == pytest.approx(known["col_ne"], abs=ROUNDING)


# ssokota/mmd, examples/nfg/perturbed_rps.py: entropy, payoffs (A + 3)/6; to the digits printed
QRE = [(0.05, [0.1517447, 0.46794775, 0.38030755]), (0.5, [0.29813319, 0.41382045, 0.28804635])]


@pytest.mark.parametrize(("tau", "policy"), QRE)
def test_published_quantal_response_equilibria(tau, policy):
    game = PreferenceGame([[0.5, 0, 1], [1, 0.5, 1 / 3], [0, 2 / 3, 0.5]])
    for spec in ("reverse_kl", "entropy"):
        found = equilibrium(game, parse(spec), tau)
        certify(game, found, parse(spec), tau)
        assert found.policy == pytest.approx(policy, abs=5e-8)


@pytest.mark.parametrize("known", shared("known_qre.json"), ids=lambda known: known["name"])
def test_known_qres_beside_the_checkout(known):
    found = equilibrium(PreferenceGame(known["payoff"]), REVERSE_KL, known["tau"])
    assert found.policy == pytest.approx(known["published"], abs=5e-8)
    assert found.policy == pytest.approx(known["recomputed"], abs=1e-11)  # its own residual


def test_measured_win_rates_beside_the_checkout():
    path = DATA / "soccer.txt"
    if not path.exists():
        pytest.skip("no measured win rates beside the checkout")
    game = PreferenceGame(np.loadtxt(path))
    found = equilibrium(game)
    certify(game, found)
    assert found.unique
    assert np.flatnonzero(found.policy).tolist() == [1, 8, 9]


class TestSeveralEquilibria:
    """The analytic center: the largest Σ log z on the support + Σ log w off it, of both players."""

    def test_duplicates_share_evenly(self):
        rps = zoo.get("rps").payoff
        found = equilibrium(PreferenceGame(np.kron(np.ones((2, 2)), rps)))
        assert not found.unique
        assert found.policy == pytest.approx(np.full(6, 1 / 6), abs=ROUNDING)

    @pytest.mark.parametrize("n", [2, 4, 50])
    def test_everything_is_an_equilibrium_of_nothing(self, n):
        found = equilibrium(SkewGame(np.zeros((n, n))))
        assert not found.unique
        assert found.policy == pytest.approx(np.full(n, 1 / n), abs=ROUNDING)

    def test_one_player_may_be_free_and_the_other_not(self):
        """Column 3 of (1, −1; −1, 1; ½, ½) is no row's better or worse; by hand."""
        game = MatrixGame([[1, -1, 0], [-1, 1, 0]])
        found = equilibrium(game)
        certify(game, found)
        assert not found.unique
        assert found.policy == pytest.approx([0.5, 0.5], abs=ROUNDING)
        assert found.opponent_policy == pytest.approx([1 / 3] * 3, abs=ROUNDING)

    def test_slack_counts(self):
        """CyberAgentAILab/m2wu, m_ne.csv: y = (a, a, a, b, b) with 3a + 2b = 1, b > 0 losing b for
        rows 4 and 5, so that a³b⁴ is largest: a = 1/7, b = 2/7."""
        game = MatrixGame(
            [
                [0, 1, -1, 0, 0],
                [-1, 0, 1, 0, 0],
                [1, -1, 0, 0, 0],
                [1, -1, 0, -2, 1],
                [1, -1, 0, 1, -2],
            ]
        )
        found = equilibrium(game)
        certify(game, found)
        assert not found.unique
        assert found.opponent_policy == pytest.approx(np.array([1, 1, 1, 2, 2]) / 7, abs=ROUNDING)
        assert found.policy == pytest.approx([1 / 3] * 3 + [0, 0], abs=ROUNDING)

    @pytest.mark.parametrize("seed", range(4))
    def test_no_feasible_direction_improves_the_centre(self, seed):
        """A face of dimension 2 or more: low rank, with some actions strictly worse."""
        rng = np.random.default_rng(seed)
        points, losing = rng.normal(size=(9, 2)), rng.uniform(0.5, 1, size=(9, 3))
        core = points @ np.array([[0, 1], [-1, 0]]) @ points.T
        game = SkewGame(np.block([[core, losing], [-losing.T, np.zeros((3, 3))]]))
        found = equilibrium(game)
        certify(game, found)
        if found.unique:  # no point of the plane is surrounded
            pytest.skip("a pure equilibrium")
        played = found.policy > 0
        slack = -(game.payoff @ found.policy)
        system = np.vstack([game.payoff[np.ix_(played, played)], np.ones(played.sum())])
        free = np.linalg.svd(system)[2][np.linalg.matrix_rank(system) :].T
        assert free.shape[1] >= 1
        gain = free.T @ (1 / found.policy[played])
        gain -= free.T @ (game.payoff[np.ix_(~played, played)].T @ (1 / slack[~played]))
        # The derivative of the sum of logs along the face; its terms are up to 1/min(π).
        assert np.abs(gain).max() <= 1e-8 / found.policy[played].min()

    def test_in_a_batch_only_where_it_is_so(self):
        rps = zoo.get("rps").payoff
        found = equilibrium(PreferenceGame(np.stack([rps, np.full((3, 3), 0.5), rps])))
        assert found.unique.tolist() == [True, False, True]
        assert found.policy == pytest.approx(np.full((3, 3), 1 / 3), abs=ROUNDING)


def test_chi2_has_exact_zeros():
    found = equilibrium(zoo.get("league"), parse("chi2"), 0.01)
    assert np.isneginf(found.logp).any()
    assert np.array_equal(found.policy == 0, np.isneginf(found.logp))


def test_tiny_probabilities_are_exact_in_logs():
    """At τ = 1e-4 log π is log μ + (payoff − ν)/τ, down to −10⁴, far below what exp can hold."""
    game, tau = random_game(23, 30), 1e-4
    found = equilibrium(game, REVERSE_KL, tau)
    assert found.logp.min() < -800
    log_ratio = found.logp - game.payoff @ found.policy / tau
    # Logs of 5000 are rounded to 1e-12, and policies with them; that over τ.
    assert np.ptp(log_ratio) <= 1e-8


def test_cold_limit_is_the_unregularized_equilibrium():
    """‖π_τ − π*‖ = O(τ) where π* is unique: ten times colder is ten times closer."""
    game = random_game(24, 9)
    limit = equilibrium(game)
    assert limit.unique
    for spec in ("reverse_kl", "js", "chi2"):
        distances = [
            np.abs(equilibrium(game, parse(spec), tau).policy - limit.policy).max()
            for tau in (1e-4, 1e-5)
        ]
        assert distances[1] == pytest.approx(distances[0] / 10, rel=0.02)


def test_continuous_in_the_temperature():
    game, mu = random_game(25, 6), random_policy(26, 6)
    for spec in ("reverse_kl", "chi2", "alpha:-1"):
        taus = np.geomspace(5, 0.005, 200)
        path = np.array([equilibrium(game, parse(spec), tau, mu).policy for tau in taus[::10]])
        assert np.abs(np.diff(path, axis=0)).max() < 0.3
        near = [equilibrium(game, parse(spec), tau, mu).policy for tau in (0.1, 0.1001)]
        assert np.abs(near[0] - near[1]).max() < 1e-2


@given(seeds, sizes, st.sampled_from([None, "reverse_kl", "chi2"]))
def test_relabelling_actions_relabels_the_policy(seed, n, spec):
    game = random_game(seed, n)
    order = np.random.default_rng(seed).permutation(n)
    moved = PreferenceGame(game.payoff[np.ix_(order, order)])
    mu, regularizer, tau = random_policy(seed, n), spec and parse(spec), 0.1 if spec else 0.0
    found = equilibrium(game, regularizer, tau, mu)
    same = equilibrium(moved, regularizer, tau, mu[order])
    if found.unique:
        # The gap is of second order: √1e-16 over τ, or over the smallest singular value.
        assert same.policy == pytest.approx(found.policy[order], abs=1e-7)


@given(seeds, st.integers(1, 5), st.integers(1, 5), st.floats(-100, 100))
def test_blind_to_a_constant_and_fair_to_both_players(seed, m, n, constant):
    game = random_matrix(seed, m, n)
    references = random_policy(seed, m), random_policy(seed + 1, n)
    found = equilibrium(game, REVERSE_KL, 0.2, references)
    moved = equilibrium(MatrixGame(game.payoff + constant), REVERSE_KL, 0.2, references)
    swapped = equilibrium(MatrixGame(-game.payoff.T), REVERSE_KL, 0.2, references[::-1])
    # Rounding of 100, over τ.
    assert moved.policy == pytest.approx(found.policy, abs=1e-11)
    assert moved.value == pytest.approx(found.value + constant, abs=1e-11)
    assert swapped.policy == pytest.approx(found.opponent_policy, abs=1e-11)
    assert swapped.value == pytest.approx(-found.value, abs=1e-11)


@given(seeds, sizes)
def test_kinds_of_one_game_agree(seed, n):
    """A preference game, the skew game without its ½, and the zero-sum game of two players."""
    game, mu = random_game(seed, n), random_policy(seed, n)
    for regularizer, tau in ((REVERSE_KL, 0.3), (parse("chi2"), 0.3)):
        found = equilibrium(game, regularizer, tau, mu)
        skew = equilibrium(SkewGame(game.payoff - 0.5), regularizer, tau, mu)
        both = equilibrium(MatrixGame(game.payoff), regularizer, tau, mu)
        for policy in (skew.policy, both.policy, both.opponent_policy):
            assert policy == pytest.approx(found.policy, abs=1e-11)


@pytest.mark.parametrize(
    ("spec", "tau"), [(None, 0.0), ("reverse_kl", 0.05), ("reverse_kl", 1e-3), ("js", 0.02)]
)
@pytest.mark.parametrize("shape", [(5, 5), (3, 6), (12, 12)])
def test_a_batch_is_its_games_one_by_one(spec, tau, shape):
    rng = np.random.default_rng(27)
    payoff = rng.uniform(size=(2, 20, *shape))
    game = MatrixGame(payoff)
    if shape[0] == shape[1]:
        payoff = np.triu(payoff, 1) + np.swapaxes(np.tril(1 - payoff.swapaxes(-1, -2), -1), 0, 0)
        payoff = np.triu(payoff, 1)
        payoff = payoff + np.tril(1 - payoff.swapaxes(-1, -2), -1) + 0.5 * np.eye(shape[0])
        game = PreferenceGame(payoff)
    regularizer = spec and parse(spec)
    found = equilibrium(game, regularizer, tau)
    assert found.status is Status.CONVERGED
    assert found.logp.shape == (2, 20, shape[0])
    assert found.opponent_logp.shape == (2, 20, shape[1])
    assert found.value.shape == found.duality_gap.shape == found.unique.shape == (2, 20)
    assert np.abs(found.duality_gap).max() <= 1e-12
    for index in ((0, 0), (1, 7), (1, 19)):
        one = equilibrium(type(game)(payoff[index]), regularizer, tau)
        certify(type(game)(payoff[index]), one, regularizer, tau)
        assert found.policy[index] == pytest.approx(one.policy, abs=1e-9)
        assert found.opponent_policy[index] == pytest.approx(one.opponent_policy, abs=1e-9)


def test_every_game_of_a_batch_may_have_its_own_reference():
    rng = np.random.default_rng(28)
    mu = np.log(rng.dirichlet(np.ones(4), size=3))
    game = SkewGame(np.stack([random_game(seed, 4).payoff - 0.5 for seed in range(3)]))
    found = equilibrium(game, REVERSE_KL, 0.1, mu)
    for i in range(3):
        one = equilibrium(SkewGame(game.payoff[i]), REVERSE_KL, 0.1, mu[i])
        assert found.policy[i] == pytest.approx(one.policy, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((REVERSE_KL, -1.0), "tau is -1.0"),
        ((REVERSE_KL, np.nan), "tau is nan"),
        ((None, 0.1), "needs a regularizer"),
        ((REVERSE_KL, 0.1, np.log([0.5, 0.5])), "shape (2,)"),
        ((REVERSE_KL, 0.1, np.array([0, -np.inf, -np.inf])), "has zeros"),
        ((REVERSE_KL, 0.1, np.zeros(3)), "must be log-probabilities"),
        ((REVERSE_KL, 0.1, (np.full(3, -np.log(3)),) * 2), "a pair of them in a zero-sum game"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(InputError) as error:
        equilibrium(zoo.get("rps"), *arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_gap_that_cannot_be_closed_is_reported():
    """α = −5 from references of 1e-9: no float64 policy is optimal to 1e-12."""
    game, mu = random_game(1, 30), random_policy(29, 30, concentration=0.05)
    found = equilibrium(game, parse("alpha:-5"), 1e-3, mu)
    assert np.isfinite(found.policy).all()
    assert found.status is (
        Status.CONVERGED if abs(found.duality_gap) <= 1e-12 else Status.MAX_STEPS
    )
