"""Rules, one step at a time: by hand, at rest, under symmetries, in three array libraries."""

from __future__ import annotations

import math
from dataclasses import replace

import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import root

from games import InputError, zoo
from solvers import RULES, Measure, Plays, get_rule, parse, step
from solvers.arrays import normalize
from solvers.bradley_terry import bradley_terry_scores
from solvers.rates import lipschitz, predicted_rate, theory_step
from solvers.rules import (
    log_partition,
    mean,
    mixture_anchor,
    mixture_opponent,
    tau_from_lam,
)
from solvers.theory import Theory, harmonic
from tests.strategies import (
    divergences,
    games,
    games_with_reference,
    random_game,
    random_policy,
    seeds,
    sizes,
)

N = 4
GAME, PI, MU, DATA = (
    random_game(0, N),
    random_policy(1, N),
    random_policy(2, N),
    random_policy(3, N),
)
P = GAME.payoff
AVERAGE = random_policy(4, N)
PREVIOUS, GEOMETRIC = random_policy(5, N), random_policy(6, N) - 1.0
PLAYS = Plays.exact(
    P,
    PI,
    MU,
    logp_average=AVERAGE,
    logp_geometric=GEOMETRIC,
    logp_previous=PREVIOUS,
    logp_data=DATA,
)


def settled(name: str, **settings):
    """The rule with a step size, where it takes one."""
    rule = get_rule(name, **settings)
    return rule if rule.eta == math.inf else replace(rule, eta=0.7)


def by_hand(theta):
    weights = np.exp(theta - theta.max())
    return np.log(weights / weights.sum())


def fitted_scores(preference, weights):
    """Bradley–Terry scores: scipy's own root of the gradient of the cross-entropy, s_0 = 0."""

    def slope(s):
        s = np.concatenate([[0.0], s])
        return (weights * (preference - 1 / (1 + np.exp(s - s[:, None])))).sum(-1)[1:]

    return np.concatenate([[0.0], root(slope, np.zeros(len(weights) - 1), tol=1e-14).x])


FORWARD = 2 * np.exp(PI) - np.exp(PREVIOUS)
HALF = np.exp(by_hand((PI + 0.7 * P @ np.exp(PI) + 0.07 * MU) / 1.07))
SCORES = fitted_scores(P, np.exp(PI))

# The formulas of the papers, in probabilities, η = 0.7 and τ = 0.1.
HAND = {
    "mwu": by_hand(PI + 0.7 * P @ np.exp(PI)),
    "mmd": by_hand((PI + 0.7 * P @ np.exp(PI) + 0.07 * MU) / 1.07),
    "gmmd": by_hand((PI + 0.7 * P @ np.exp(PI) + 0.07 * MU) / 1.07),
    "omd": by_hand(PI + 0.7 * (P @ np.exp(PI) - 0.1 * (PI - MU))),
    "inpo": by_hand(0.7 * P @ np.exp(PI) + 0.07 * MU + 0.93 * PI),
    "nash_md": by_hand(0.93 * PI + 0.07 * MU + 0.7 * P @ np.exp(by_hand(0.93 * PI + 0.07 * MU))),
    "optimistic_mwu": by_hand(PI + 0.7 * P @ FORWARD),
    "optimistic_gmmd": by_hand((PI + 0.7 * P @ FORWARD + 0.07 * MU) / 1.07),
    "egpo": by_hand((PI + 0.7 * P @ HALF + 0.07 * MU) / 1.07),
    "mpo": by_hand((PI + 0.7 * P @ np.exp(PI) + 0.07 * MU) / 1.07),
    "comal": by_hand(0.7 * P @ np.exp(PI) + 0.07 * MU + 0.93 * PI),
    "mnpo": by_hand(0.93 * GEOMETRIC + 0.07 * MU + 0.7 * P @ np.exp(AVERAGE)),
    "ipo_md": by_hand(MU + P @ np.exp(by_hand(0.875 * PI + 0.125 * MU)) / 0.1),
    "dpo": by_hand(MU + SCORES / 0.1),
    "moving_dpo": by_hand(PI + 0.7 * SCORES),
    "fictitious_play": np.where(np.arange(N) == (P @ np.exp(AVERAGE)).argmax(), 0.0, -np.inf),
    "smooth_fictitious_play": by_hand(P @ np.exp(AVERAGE) / 0.1),
    "spin": by_hand(PI + 0.7 * (DATA - AVERAGE)),
    "alpha_spin": by_hand(0.95 * PI + 0.05 * MU + 0.7 * (DATA - AVERAGE)),
}


@pytest.mark.parametrize("name", RULES)
def test_one_step_is_the_papers_formula(name):
    logp = step(settled(name)(PLAYS), PLAYS)
    # Scores of size 6 are found to rounding by both, and dpo multiplies them by 1/τ = 10.
    assert logp == pytest.approx(HAND[name], abs=1e-11 if "dpo" in name else 1e-14)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("convert", [torch.tensor, array_api_strict.asarray])
def test_three_array_libraries_give_the_same_step(name, convert):
    rule = settled(name)
    fields = ("logp", "logp_ref", "logp_average", "logp_geometric", "logp_previous", "logp_data")
    own = Measure(**{f: convert(getattr(PLAYS.own, f)) for f in fields})
    plays = Plays(convert(np.array(P)), own, own)
    expected = step(rule(PLAYS), PLAYS)
    assert np.asarray(step(rule(plays), plays)) == pytest.approx(expected, abs=1e-12)


@given(games_with_reference(), seeds, st.sampled_from(list(RULES)), st.floats(-3, 3))
def test_steps_are_blind_to_a_constant(game_and_mu, seed, name, constant):
    game, mu = game_and_mu
    logp = random_policy(seed, game.n)
    if "dpo" in name:
        constant = 0.0  # it needs preferences
    known = {
        "logp_average": logp,
        "logp_geometric": logp,
        "logp_previous": random_policy(seed + 2, game.n),
        "logp_data": random_policy(seed + 1, game.n),
    }
    rule = settled(name)
    plain = Plays.exact(game.payoff, logp, mu, **known)
    lifted = Plays.exact(game.payoff + constant, logp, mu, **known)
    wins = np.sort(game.payoff @ np.exp(logp))
    if name == "fictitious_play" and wins[-1] - wins[-2] < 1e-9:
        return  # a tie that rounding may break either way
    a, b = step(rule(plain), plain), step(rule(lifted), lifted)
    # 1/τ = 10 magnifies the rounding of the constant.
    assert np.exp(a) == pytest.approx(np.exp(b), abs=1e-13)


@given(games_with_reference(), seeds, st.sampled_from(list(RULES)), divergences)
def test_steps_are_permutation_equivariant(game_and_mu, seed, name, regularizer):
    game, mu = game_and_mu
    rng = np.random.default_rng(seed)
    logp, data = random_policy(seed, game.n), random_policy(seed + 1, game.n)
    order = rng.permutation(game.n)
    rule = settled(name)
    if rule.regularized and not rule.only_reverse_kl:
        rule = replace(rule, regularizer=regularizer)
    wins = np.sort(game.payoff @ np.exp(logp))
    if name == "fictitious_play" and wins[-1] - wins[-2] < 1e-9:
        return
    known = {
        "logp_average": logp,
        "logp_geometric": data - 1,
        "logp_previous": random_policy(seed + 2, game.n),
        "logp_data": data,
    }
    plays = Plays.exact(game.payoff, logp, mu, **known)
    shuffled = Plays.exact(
        game.payoff[np.ix_(order, order)],
        logp[order],
        mu[order],
        **{name: values[order] for name, values in known.items()},
    )
    # Only the order of sums changes; explicit gradients of small π may be large.
    expected = np.exp(step(rule(plays), plays)[order])
    assert np.exp(step(rule(shuffled), shuffled)) == pytest.approx(expected, abs=1e-11)


@given(seeds, sizes, st.floats(0.1, 5), st.floats(0.1, 1))
def test_alpha_spin_rests_where_it_says(seed, n, beta, alpha):
    """∝ base^(1−α) data^(1/β), exponents normalized."""
    base, data = random_policy(seed, n), random_policy(seed + 1, n)
    rest = normalize(((1 - alpha) * base + data / beta) / (1 - alpha + 1 / beta))
    plays = Plays.exact(None, rest, base, logp_average=rest, logp_data=data)
    rule = get_rule("alpha_spin", alpha=alpha, eta=1 / beta)
    assert step(rule(plays), plays) == pytest.approx(rest, abs=1e-12)  # logs down to −20, times 1/β


@given(games_with_reference(), st.floats(0.05, 2), st.floats(0.05, 5))
def test_mmd_is_gmmd_with_reverse_kl(game_and_mu, tau, eta):
    game, mu = game_and_mu
    plays = Plays.exact(game.payoff, random_policy(5, game.n), mu)
    one = get_rule("mmd", tau=tau, eta=eta)(plays)
    other = get_rule("gmmd", tau=tau, eta=eta, regularizer="reverse_kl")(plays)
    assert np.array_equal(step(one, plays), step(other, plays))


@given(games_with_reference(), st.floats(0.05, 1), st.floats(0.05, 0.9))
def test_inpo_is_omd_and_nash_md_without_the_mixed_opponent(game_and_mu, tau, share):
    game, mu = game_and_mu
    plays = Plays.exact(game.payoff, random_policy(6, game.n), mu)
    eta = share / tau
    inpo = step(get_rule("inpo", tau=tau, eta=eta)(plays), plays)
    omd = step(get_rule("omd", tau=tau, eta=eta, regularizer="reverse_kl")(plays), plays)
    nash = RULES["nash_md"]
    same_opponent = replace(nash, opponent=RULES["mwu"].opponent, tau=tau, eta=eta)
    assert np.array_equal(inpo, omd)
    assert step(same_opponent(plays), plays) == pytest.approx(inpo, abs=1e-12)


@pytest.mark.parametrize("name", ["gmmd", "omd", "nash_md", "egpo", "optimistic_gmmd", "mnpo"])
def test_without_a_temperature_a_rule_plays_the_plain_game(name):
    """RSPO at λ = 0 is SPPO; extragradient and optimism stay what they are."""
    plain = replace(get_rule(name, tau=0), eta=0.7)
    known = {"logp_average": PI, "logp_geometric": PI, "logp_previous": PREVIOUS}
    plays = Plays.exact(P, PI, MU, **known)
    like = {"egpo": "egpo", "optimistic_gmmd": "optimistic_mwu"}.get(name, "mwu")
    same = replace(RULES[like], regularization="none", eta=0.7)
    assert plain.target == (None, 0.0)
    assert step(plain(plays), plays) == pytest.approx(step(same(plays), plays), abs=1e-14)


@given(games_with_reference(), st.floats(0.05, 1))
def test_inpo_at_the_inverse_temperature_is_online_ipo(game_and_mu, tau):
    """∝ μ exp(P(y ≻ π_t)/τ): what online IPO's loss has its minimum at (Calandriello et al.)."""
    game, mu = game_and_mu
    plays = Plays.exact(game.payoff, random_policy(6, game.n), mu)
    inpo = step(get_rule("inpo", tau=tau, eta=1 / tau)(plays), plays)
    pure = replace(get_rule("ipo_md", tau=tau), opponent=RULES["mwu"].opponent)
    assert step(pure(plays), plays) == pytest.approx(inpo, abs=1e-12)


@given(games_with_reference(), st.floats(0.05, 1), st.floats(0.05, 0.9))
def test_egpo_is_that_of_its_paper(game_and_mu, tau, share):
    """There R is explicit, at π_t in both steps: with reverse KL the same at η/(1 − ητ)."""
    game, mu = game_and_mu
    logp, eta = random_policy(6, game.n), share / tau

    def moved(opponent):
        return by_hand((1 - share) * logp + share * mu + eta * game.payoff @ np.exp(opponent))

    plays = Plays.exact(game.payoff, logp, mu)
    rule = get_rule("egpo", tau=tau, eta=eta / (1 - share))
    # 1/(1 − ητ) ≤ 10 magnifies rounding.
    assert step(rule(plays), plays) == pytest.approx(moved(moved(logp)), abs=1e-12)


@given(seeds, sizes)
def test_bradley_terry_scores_are_the_rewards(seed, n):
    rng = np.random.default_rng(seed)
    rewards, weights = rng.normal(size=(3, n)), rng.dirichlet(np.ones(n), size=3)
    preference = 1 / (1 + np.exp(rewards[..., None, :] - rewards[..., :, None]))
    scores = bradley_terry_scores(preference, weights)
    centered = rewards - (weights * rewards).sum(-1, keepdims=True)
    assert scores == pytest.approx(centered, abs=1e-12)


@given(games(), seeds)
def test_bradley_terry_scores_match_every_win_rate(game, seed):
    weights = np.exp(random_policy(seed, game.n))
    weights[0] = 0.0  # who is never played has a score all the same
    weights /= weights.sum()
    s = bradley_terry_scores(game.payoff, weights)
    modelled = 1 / (1 + np.exp(s[None, :] - s[:, None]))
    extreme = np.abs(s).max() > 30  # who always wins has an infinite score
    assert extreme or (modelled @ weights == pytest.approx(game.payoff @ weights, abs=1e-12))


def test_bradley_terry_scores_stay_finite():
    scores = bradley_terry_scores(np.array([[0.5, 1.0], [0.0, 0.5]]), np.array([0.5, 0.5]))
    assert np.isfinite(scores).all()
    assert scores[0] - scores[1] > 30


def test_what_is_remembered():
    spin, mnpo = RULES["alpha_spin"], RULES["mnpo"]
    assert [mnpo.remembered(t) for t in (0, 1, 3)] == [[0, 0], [1, 0], [3, 2]]
    forever = replace(spin, memory=math.inf)
    assert [forever.remembered(t) for t in (0, 1, 3)] == [[0], [1], [3, 2, 1]]
    assert RULES["fictitious_play"].remembered(2) == [2, 1, 0]


def test_magnets():
    comal = get_rule("comal", tau=0.5, magnet_every=3)
    assert [comal.magnet(t) for t in range(7)] == [0, 0, 0, 3, 3, 3, 6]
    restarting = replace(comal, eta=harmonic(0.5, 3))
    assert restarting.eta_at(4) == restarting.eta_at(1) == 1.0
    assert comal.target == (None, 0.0)
    assert RULES["inpo"].magnet(7) == 0


def test_samples_of_a_proposal_stand_for_the_policy():
    """Drawn from ν, the weights of a policy are ∝ π/ν; a step is where it would be from π_t."""
    plain = Plays.sampled(P, PI, MU)
    same = Plays.sampled(P, PI, MU, logp_proposal=PI + 3.0)
    assert same.own.weights == pytest.approx(plain.own.weights, abs=1e-15)
    rule = replace(RULES["gmmd"], eta=0.7)
    assert step(rule(same), same) == pytest.approx(step(rule(plain), plain), abs=1e-14)
    other = Plays.sampled(P, PI, MU, logp_proposal=MU)
    ratio = np.exp(PI - MU)
    assert other.own.weights == pytest.approx(ratio / ratio.sum(), abs=1e-15)
    assert other.own.weights_of(MU) == pytest.approx(np.full(N, 1 / N), abs=1e-15)


def test_baselines():
    update = replace(RULES["mwu"], eta=0.7, baseline=log_partition)(PLAYS)
    target = update.anchor + update.eta * (update.direction - update.baseline)
    assert target == pytest.approx(step(update, PLAYS), abs=1e-14)
    average = replace(RULES["mwu"], eta=0.7, baseline=mean)(PLAYS).baseline
    assert average == pytest.approx(0.5, abs=1e-15)  # a preference game is worth ½ against itself


def test_plays_of_samples_stand_for_the_policy():
    """A round robin without the own entry, and mixtures by importance weights."""
    rng = np.random.default_rng(7)
    payoff = rng.uniform(size=(3, 3))
    logp, mu = np.log([0.5, 0.2, 0.3]), np.log([0.1, 0.6, 0.3])
    exclude = Plays.sampled(payoff, logp, mu)
    by_hand = [(payoff[k].sum() - payoff[k, k]) / 2 for k in range(3)]
    assert exclude.against(exclude.own.weights) == pytest.approx(by_hand, abs=1e-15)
    include = Plays.sampled(payoff, logp, mu, "include")
    assert include.against(include.own.weights) == pytest.approx(payoff.mean(-1), abs=1e-15)
    ratio = np.exp(0.4 * (mu - logp))
    weights = exclude.own.weights_of(exclude.own.mixture(0.4))
    assert weights == pytest.approx(ratio / ratio.sum(), abs=1e-15)
    others = [
        (payoff[k] @ weights - payoff[k, k] * weights[k]) / (1 - weights[k]) for k in range(3)
    ]
    assert exclude.against(weights) == pytest.approx(others, abs=1e-15)


def test_schedules():
    assert [harmonic(0.5)(t) for t in (0, 1, 2)] == [2, 4 / 3, 1]
    assert tau_from_lam(0.5, 1000) == 0.00025
    assert tau_from_lam(0.5, 1000, factor=1) == 0.0005


PLAIN = Plays.exact(P, PI, MU)


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: get_rule("gmdm"), "did you mean 'gmmd'"),
        (lambda: get_rule("zzz"), "choose from mwu"),
        (lambda: get_rule("gmmd", eta=0.0), "eta must be a positive number"),
        (lambda: get_rule("gmmd", eta=-1), "eta must be a positive number"),
        (lambda: get_rule("gmmd", eta=math.nan), "eta must be a positive number"),
        (lambda: get_rule("gmmd", eta="fast"), "or 'theory', not 'fast'"),
        (lambda: get_rule("gmmd", tau=-1), "tau must be a positive number"),
        (lambda: get_rule("mwu", tau=0.1), "unregularized"),
        (lambda: get_rule("mwu", regularizer="chi2"), "unregularized"),
        (lambda: get_rule("mmd", regularizer="chi2"), "knows only reverse_kl"),
        (lambda: get_rule("fictitious_play", eta=0.1), "leave out eta"),
        (lambda: get_rule("alpha_spin", alpha=1.5), "between 0 and 1"),
        (lambda: get_rule("gmmd", alpha=0.5), "'gmmd': it is for ipo_md, spin, alpha_spin"),
        (lambda: get_rule("gmmd", memory=2), "not a setting of rule 'gmmd'"),
        (lambda: get_rule("fictitious_play", memory=2), "not a setting"),
        (lambda: get_rule("alpha_spin", memory=1.5), "1, 2, … or inf"),
        (lambda: get_rule("mpo", magnet_every=0), "must be 1, 2, …"),
        (lambda: get_rule("gmmd", magnet_every=5), "'gmmd': it is for mpo, comal"),
        # what a configuration may hold
        (lambda: get_rule("alpha_spin", alpha="half"), "alpha = half must lie between 0 and 1"),
        (lambda: get_rule("alpha_spin", memory="two"), "memory = two must be 1, 2, … or inf"),
        (lambda: get_rule("mpo", magnet_every="two"), "magnet_every = two must be 1, 2, …"),
        (lambda: get_rule("mpo", magnet_every=math.inf), "magnet_every = inf must be 1, 2, …"),
        (lambda: get_rule("mnpo", eta=1.0)(PLAIN), "requires 'average'"),
        (lambda: replace(RULES["optimistic_mwu"], eta=1.0)(PLAIN), "declare it in `needs`"),
        (lambda: RULES["dpo"](Plays.exact(2 * P, PI, MU)), "payoffs between 0 and 1"),
        (lambda: RULES["dpo"](Plays(P, PLAIN.own, PLAYS.own)), "a policy plays itself by"),
        (lambda: get_rule("no.such.module:rule"), "cannot be imported"),
        (lambda: get_rule("solvers.rules:nothing"), "cannot be imported"),
        (lambda: get_rule(".x:y"), "cannot be imported: TypeError"),
        (lambda: get_rule("solvers.rules:get_rule"), "not an UpdateRule"),
        (lambda: RULES["gmmd"](PLAYS), "needs a positive step size"),
        (lambda: get_rule("nash_md", eta=20.0)(PLAYS), "eta * tau <= 1"),
        (lambda: replace(RULES["spin"])(Plays.exact(P, PI, MU)), "needs"),
        (lambda: Plays.sampled(P, PI, MU, "half"), "'exclude' or 'include'"),
        (lambda: Plays.sampled(P[:1, :1], PI[:1], MU[:1]), "at least 2 responses"),
        (lambda: get_rule("mwu", eta=1.0)(Plays.exact(None, PI, MU)), "no payoffs"),
    ],
)
def test_bad_settings(call, hint):
    with pytest.raises(InputError) as error:
        call()
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_which_rules_mix_with_the_reference():
    mixing = {name for name, rule in RULES.items() if rule.mixes}
    assert mixing == {"nash_md", "mnpo", "ipo_md", "spin", "alpha_spin"}
    quarter = {"mixture_share": lambda eta, tau: 0.25}
    for rule in (
        replace(RULES["gmmd"], opponent=mixture_opponent, **quarter),
        replace(RULES["mwu"], anchor=mixture_anchor, **quarter),
    ):
        assert rule.mixes
        assert rule.share(1.0) == 0.25


def test_aliases_and_own_rules():
    assert get_rule("sppo") is RULES["mwu"]
    assert get_rule("rspo", regularizer="chi2").regularizer == parse("chi2")
    assert get_rule("solvers.rules:inpo", tau=0.2).tau == 0.2
    assert get_rule("alpha_spin", memory="inf").memory == math.inf  # as the word on a command line
    assert zoo.get("rps").n == 3


def test_a_rule_with_its_own_opponent_declares_its_theory():
    """Another opponent: nothing is inferred from the functions, all is declared on the object."""
    own = replace(
        RULES["gmmd"],
        name="own",
        opponent=lambda plays, rule, eta: plays.other.weights_of(
            plays.other.mixture(rule.share(eta))
        ),
        mixture_share=lambda eta, tau: eta * tau / 2,
        theory=Theory(
            step=lambda known: 1 / (2 * known.lipschitz),
            rate=lambda eta, known: 1 - eta * known.tau / 4,
            bound=None,
        ),
    )
    game, mu = zoo.get("rps"), np.log(np.full(3, 1 / 3))
    resolved = theory_step(own, game, mu)
    assert resolved.eta == 1 / (2 * lipschitz(game))
    assert resolved.share(0.5) == 0.5 * own.tau / 2
    assert predicted_rate(resolved, game, mu) == 1 - resolved.eta * own.tau / 4
    with pytest.raises(InputError, match="no step size by theory"):
        theory_step(replace(own, theory=None), game, mu)
