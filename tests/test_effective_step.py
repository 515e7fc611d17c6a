"""The step that a policy made, read off by least squares."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from games import zoo
from solvers.arrays import normalize
from solvers.divergences import parse
from solvers.effective_step import effective_step
from solvers.plays import Plays, memory_fields
from solvers.rules import RULES, UpdateRule, get_rule
from solvers.steps import step

PROMPTS, ACTIONS = 6, 5
STEPPING = [name for name, rule in RULES.items() if rule.eta != math.inf and not rule.needs_data]


def game(rule: UpdateRule, *, sampled: bool, at_reference: bool = False) -> Plays:
    """Random preferences and policies of some prompts, with the memory that rules ask for."""
    rng = np.random.default_rng(7)
    payoff = zoo.random(ACTIONS, rng, batch_shape=(PROMPTS,)).payoff
    logp, logp_ref, previous = (normalize(rng.normal(size=(PROMPTS, ACTIONS))) for _ in range(3))
    if at_reference:
        logp = previous = logp_ref
    fields = {}
    if "previous" in rule.needs:
        fields["logp_previous"] = previous
    if {"average", "geometric"} & set(rule.needs):
        fields |= memory_fields([logp, previous])
    make = Plays.sampled if sampled else Plays.exact
    return make(payoff, logp, logp_ref, **fields)


@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])
@pytest.mark.parametrize("name", STEPPING)
def test_an_exact_step_has_the_step_size_that_was_asked_for(name: str, sampled: bool) -> None:
    """Of every rule, whatever its anchor, opponent and memory."""
    rule = get_rule(name, eta=0.7, tau=0.3 if RULES[name].regularized else None)
    plays = game(rule, sampled=sampled)
    update = rule(plays)
    found = effective_step(rule, plays, update, step(update, plays))
    assert found is not None
    assert found.eta == pytest.approx(0.7, abs=1e-10)
    assert found.r_squared == pytest.approx(1, abs=1e-10)
    assert found.eta_error < 1e-9
    if rule.regularized:
        assert found.tau == pytest.approx(0.3, abs=1e-10)
    else:
        assert math.isnan(found.tau)


@pytest.mark.parametrize("name", ["gmmd", "omd"])
@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])
@pytest.mark.parametrize(
    "regularizer",
    [
        "reverse_kl",
        "entropy",
        "0.5*reverse_kl",
        "forward_kl",
        "chi2",
        "js",
        "hellinger",
        "alpha:1.5",
        "0.1*forward_kl+0.5*reverse_kl",
    ],
)
def test_every_divergence(name: str, regularizer: str, sampled: bool) -> None:
    rule = get_rule(name, eta=0.7, tau=0.3, regularizer=parse(regularizer))
    plays = game(rule, sampled=sampled)
    update = rule(plays)
    found = effective_step(rule, plays, update, step(update, plays))
    assert found is not None
    assert (found.eta, found.tau) == pytest.approx((0.7, 0.3), abs=1e-10)


@pytest.mark.parametrize("name", ["gmmd", "omd", "nash_md"])
def test_at_the_reference_the_temperature_is_not_identified(name: str) -> None:
    rule = get_rule(name, eta=0.7, tau=0.3)
    plays = game(rule, sampled=False, at_reference=True)
    update = rule(plays)
    found = effective_step(rule, plays, update, step(update, plays))
    assert found is not None
    assert found.eta == pytest.approx(0.7, abs=1e-10)
    assert math.isnan(found.tau)
    assert math.isnan(found.tau_error)


def test_half_a_step_is_half_the_step_size() -> None:
    """Without a regularizer log π_{t+1}/π_t is linear in η."""
    rule = get_rule("mwu", eta=2.0)
    plays = game(rule, sampled=False)
    update = rule(plays)
    half = plays.own.logp + 0.5 * (step(update, plays) - plays.own.logp)
    found = effective_step(rule, plays, update, half)
    assert found is not None
    assert found.eta == pytest.approx(1.0, abs=1e-10)


def test_what_has_no_step_size() -> None:
    """A best response; a game in which all payoffs are equal; one of data."""
    response = replace(RULES["dpo"])
    plays = game(response, sampled=False)
    assert effective_step(response, plays, response(plays), plays.own.logp) is None
    tied = replace(plays, payoff=np.full_like(plays.payoff, 0.5))
    rule = get_rule("mwu", eta=1.0)
    assert effective_step(rule, tied, rule(tied), tied.own.logp) is None
    data = Plays.with_data(plays.own.logp, plays.own.logp_ref, 1)
    spin = get_rule("spin")
    assert effective_step(spin, data, spin(data), data.own.logp) is None


def test_the_standard_errors_are_those_of_independent_prompts() -> None:
    """Over repeated noise the estimates spread as their standard errors say.

    400 repetitions determine a standard deviation to 1/√800 = 3.5 %; the error itself is an
    estimate from 60 prompts. 15 % is more than three times both.
    """
    rng = np.random.default_rng(3)
    rule = get_rule("gmmd", eta=1.5, tau=0.4)
    payoff = zoo.random(4, rng, batch_shape=(60,)).payoff
    logp, logp_ref = (normalize(rng.normal(size=(60, 4))) for _ in range(2))
    plays = Plays.exact(payoff, logp, logp_ref)
    update = rule(plays)
    target = step(update, plays)
    shared = rng.normal(size=(400, 60, 1)) * rng.normal(size=(1, 1, 4))  # correlated in a prompt
    noise = 0.1 * (shared + rng.normal(size=(400, 60, 4)))
    found = [effective_step(rule, plays, update, target + each) for each in noise]
    values = np.array([(f.eta, f.eta_error, f.tau, f.tau_error) for f in found if f is not None])
    assert values[:, 0].std() == pytest.approx(values[:, 1].mean(), rel=0.15)
    assert values[:, 2].std() == pytest.approx(values[:, 3].mean(), rel=0.15)
