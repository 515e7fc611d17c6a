from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from games import InputError, MatrixGame, PreferenceGame, zoo

KNOWN_GAMES = Path(__file__).resolve().parents[2] / "shared" / "data" / "known_games.json"
SIZED = ("cyclic", "bradley_terry", "blade_chest", "random")
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(3, 12)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def has_cycle(payoff: np.ndarray) -> bool:
    """Whether a beats b beats ... beats a: there is none if dropping winners ends with nobody."""
    left = list(range(len(payoff)))
    while left:
        unbeaten = [i for i in left if all(payoff[j, i] <= 0.5 for j in left)]
        if not unbeaten:
            return True
        left = [i for i in left if i not in unbeaten]
    return False


def maximin(payoff: np.ndarray) -> tuple[np.ndarray, float]:
    """The row player's equilibrium strategy and the value, by a linear program."""
    m, n = payoff.shape
    program = linprog(
        np.append(np.zeros(m), -1.0),
        A_ub=np.column_stack([-payoff.T, np.ones(n)]),
        b_ub=np.zeros(n),
        A_eq=[np.append(np.ones(m), 0.0)],
        b_eq=[1.0],
        bounds=[(0, None)] * m + [(None, None)],
    )
    return program.x[:m], program.x[m]


@given(st.sampled_from(sorted(zoo.NAMES)), seeds)
def test_every_name_gives_a_game_and_the_seed_decides_it(name: str, seed: int) -> None:
    game = zoo.get(name, seed)
    np.testing.assert_array_equal(game.payoff, zoo.get(name, seed).payoff)
    assert game.name
    if name not in ("matching_pennies", "blotto"):
        assert isinstance(game, PreferenceGame)
        np.testing.assert_array_equal(game.payoff + game.payoff.T, 1.0)
        assert ((game.payoff >= 0) & (game.payoff <= 1)).all()
    else:
        assert isinstance(game, MatrixGame)


def test_random_games_differ_by_seed() -> None:
    for name in ("random", "bradley_terry", "blade_chest", "misspecified"):
        assert (zoo.get(name, 0).payoff != zoo.get(name, 1).payoff).any()


@given(st.sampled_from(SIZED), st.integers(1, 9))
def test_sizes_follow_a_colon(name: str, half: int) -> None:
    game = zoo.get(f"{name}:{2 * half + 1}")
    assert game.n == 2 * half + 1
    assert game.name == f"{name}:{2 * half + 1}"
    assert f"{name}:N" in zoo.NAMES[name]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rsp", "unknown game 'rsp': did you mean 'rps'"),
        ("bradley-terry:5", "did you mean 'bradley_terry'"),
        ("", "choose from league, rps"),
        ("rps:4", "rps has a fixed size; leave out ':4'"),
        ("random:", "random:: the size must be a whole number from 1"),
        ("random:-3", "the size must be a whole number"),
        ("random:0", "the size must be a whole number"),
        ("random:1e3", "the size must be a whole number"),
        ("random:1000000", "to 20000"),
        ("random:" + 5000 * "9", "random:9{50}.*: the size must be a whole number from 1 to 20000"),
        ("random:٣", "the size must be a whole number"),
        (5000 * "x", "unknown game 'x{57}...'"),
        ("cyclic:4", "n must be odd"),
        ("cyclic:1", "at least 3"),
        ("blade_chest:2", "at least 3"),
    ],
)
def test_names_that_make_no_game(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        zoo.get(spec)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_default_has_one_equilibrium_on_three_of_ten() -> None:
    game = zoo.get(zoo.DEFAULT)
    policy = np.zeros(10)
    policy[:3] = 0.5, 0.3, 0.2
    against = game.payoff @ policy
    np.testing.assert_allclose(against[:3], 0.5, rtol=0, atol=1e-15)  # rounding of three products
    assert against[3:].max() < 0.44  # strictly worse: no equilibrium uses the seven others
    # and on the three, the equations (P - 1/2) x = 0 leave one direction
    assert np.linalg.matrix_rank(game.payoff[:3, :3] - 0.5) == 2
    assert has_cycle(game.payoff)


@given(st.tuples(*[st.floats(0.01, 10)] * 3), st.floats(0.1, 1))
def test_biased_rps_has_its_weights_as_equilibrium(weights, strength: float) -> None:
    game = zoo.biased_rock_paper_scissors(weights, strength)
    policy = np.array(weights) / sum(weights)
    np.testing.assert_allclose(game.payoff @ policy, 0.5, rtol=0, atol=1e-15)
    assert game.payoff.max() == pytest.approx(0.5 + strength / 2, abs=1e-15)
    assert has_cycle(game.payoff)


@given(sizes.map(lambda n: 2 * n - 1), st.floats(0.01, 1))
def test_cyclic_games_are_regular_tournaments(n: int, strength: float) -> None:
    payoff = zoo.cyclic(n, strength).payoff
    np.testing.assert_array_equal((payoff > 0.5).sum(axis=1), (n - 1) // 2)
    np.testing.assert_allclose(payoff.mean(axis=1), 0.5, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(payoff[1:, 1:], payoff[:-1, :-1])  # invariant under rotation
    assert has_cycle(payoff)


def test_cyclic_games_have_the_usual_labels() -> None:
    rps, rpsls = zoo.get("rps"), zoo.get("rpsls")
    beats = {"rock": "scissors", "paper": "rock", "scissors": "paper"}
    for game in (rps, rpsls):
        for winner, loser in beats.items():
            assert game.payoff[game.labels.index(winner), game.labels.index(loser)] == 1.0
    assert rpsls.payoff[rpsls.labels.index("spock"), rpsls.labels.index("rock")] == 1.0
    assert rpsls.payoff[rpsls.labels.index("lizard"), rpsls.labels.index("spock")] == 1.0


@given(st.lists(st.permutations(range(5)), min_size=1, max_size=7))
def test_rankings_are_counted(rankings: list[list[int]]) -> None:
    payoff = zoo.condorcet(rankings).payoff
    for i, j in [(0, 1), (3, 2), (4, 0)]:
        share = np.mean([ranking.index(i) < ranking.index(j) for ranking in rankings])
        assert payoff[i, j] == pytest.approx(share, abs=1e-15)


def test_condorcet_is_cyclic_although_no_voter_is() -> None:
    thirds = np.array([[1.5, 2, 1], [1, 1.5, 2], [2, 1, 1.5]])
    # rounding of a mean of three
    np.testing.assert_allclose(zoo.get("condorcet").payoff, thirds / 3, rtol=0, atol=1e-15)
    with pytest.raises(InputError, match="0 to 2"):
        zoo.condorcet([(0, 1, 2), (0, 1, 1)])


@given(seeds, sizes, st.permutations(range(12)))
def test_bradley_terry_ranks_by_reward(seed: int, n: int, order: list[int]) -> None:
    rewards = rng(seed).normal(size=(2, n))
    order = [i for i in order if i < n]
    payoff = zoo.bradley_terry(rewards).payoff
    odds = np.exp(rewards)
    expected = odds[:, :, None] / (odds[:, :, None] + odds[:, None, :])
    np.testing.assert_allclose(payoff, expected, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(
        zoo.bradley_terry(rewards[:, order]).payoff, payoff[:, order][..., order]
    )
    assert not has_cycle(payoff[0])


@given(seeds, sizes)
def test_blade_chest_turns_from_transitive_to_cyclic(seed: int, n: int) -> None:
    transitive = zoo.blade_chest(n, 0.0, rng(seed), batch_shape=(2,)).payoff
    cyclic = zoo.blade_chest(n, 1.0, rng(seed), batch_shape=(2,)).payoff
    assert not any(has_cycle(payoff) for payoff in transitive)
    assert all(has_cycle(payoff) for payoff in cyclic)
    successor = cyclic[:, np.arange(n), (np.arange(n) + 1) % n]
    assert (successor > 0.5).all()
    # neighbors are between π/n and 3π/n apart on a circle of radius 2 (logits)
    least = 2 * min(np.sin(np.pi / n), np.sin(3 * np.pi / n))
    assert (np.log(successor / (1 - successor)) >= least - 1e-12).all()  # rounding
    half = zoo.blade_chest(n, 0.5, rng(seed), batch_shape=(2,)).payoff
    logits = np.log(half) - np.log(half.swapaxes(-1, -2))
    # rank 2 for the skills and 2 for the circle; logits of size one are known to about 1e-15
    assert (np.linalg.matrix_rank(logits, tol=1e-12) <= 4).all()


@given(seeds, sizes)
def test_misspecified_moves_the_logits(seed: int, n: int) -> None:
    game = zoo.random(n, rng(seed), batch_shape=(2,))
    surrogate = zoo.misspecified(game, 0.5, rng(seed))
    assert surrogate.payoff.shape == game.payoff.shape
    above = np.triu_indices(n, 1)
    assert (surrogate.payoff != game.payoff)[:, *above].all()
    # log and sigmoid there and back: a few roundings of p
    same = zoo.misspecified(game, 0.0, rng(seed))
    np.testing.assert_allclose(same.payoff, game.payoff, rtol=0, atol=1e-15)


def test_the_noise_of_misspecified_has_the_deviation_it_is_given() -> None:
    game = zoo.bradley_terry(np.zeros(200))
    payoff = zoo.misspecified(game, 0.3, rng(0)).payoff
    noise = (np.log(payoff) - np.log(payoff.T))[np.triu_indices(200, 1)]
    # 19,900 draws: the deviation is known to 0.3/sqrt(2 * 19900) = 0.0015; four of those
    assert noise.std() == pytest.approx(0.3, abs=0.006)
    certain = zoo.misspecified(zoo.get("rps"), 1.0, rng(0))
    np.testing.assert_array_equal(certain.payoff, zoo.get("rps").payoff)


def test_random_is_uniform_and_batched() -> None:
    payoff = zoo.random(4, rng(0), batch_shape=(2000, 3)).payoff
    assert payoff.shape == (2000, 3, 4, 4)
    above = payoff[..., *np.triu_indices(4, 1)]
    counts, _ = np.histogram(above, bins=10, range=(0, 1))
    # 36,000 draws in ten bins: 3,600 with deviation 57; four of those
    assert np.abs(counts - 3600).max() < 228


def test_blotto_has_the_textbook_solution() -> None:
    # Dresher, The Mathematics of Games of Strategy (1961): value 14/9
    game = zoo.get("blotto")
    assert game.payoff.shape == (5, 4)
    policy, value = maximin(game.payoff)
    np.testing.assert_allclose(policy, np.array([4, 0, 1, 0, 4]) / 9, atol=1e-9)  # the solver's
    assert value == pytest.approx(14 / 9, abs=1e-9)
    np.testing.assert_array_equal(zoo.blotto(3, 3).payoff, -zoo.blotto(3, 3).payoff.T)


@pytest.mark.skipif(not KNOWN_GAMES.exists(), reason="needs the shared table of known games")
@pytest.mark.parametrize(
    ("name", "known", "order"),
    [
        ("rps", "rps_preference", [0, 2, 1]),  # there every action beats the one that follows
        ("biased_rps", "biased_rps_openspiel_preference", [0, 1, 2]),
        ("rpsls", "cyclic5_preference", [0, 1, 2, 3, 4]),
        ("matching_pennies", "matching_pennies", [0, 1]),
    ],
)
def test_zoo_agrees_with_known_games(name: str, known: str, order: list[int]) -> None:
    games = {game["name"]: game for game in json.loads(KNOWN_GAMES.read_text())}
    payoff = zoo.get(name).payoff[order][:, order]
    # decimals such as 0.475 written in either way
    np.testing.assert_allclose(payoff, games[known]["payoff"], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "make",
    [
        lambda: zoo.biased_rock_paper_scissors((1, 1)),
        lambda: zoo.biased_rock_paper_scissors((1, 0, 1)),
        lambda: zoo.biased_rock_paper_scissors(strength=1.5),
        lambda: zoo.cyclic(5, strength=-1),
        lambda: zoo.blade_chest(5, 1.5, rng(0)),
    ],
)
def test_parameters_out_of_range_are_refused(make) -> None:
    with pytest.raises(InputError):
        make()
