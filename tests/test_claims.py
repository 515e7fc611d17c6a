"""The claims ledger: how verdicts come about, those of RSPO, broken rules, and CLAIMS.md."""

from __future__ import annotations

import io
import json
import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from games import SkewGame, zoo
from games.errors import InputError
from solvers import UpdateRule, parse
from solvers.__main__ import main
from solvers.arrays import normalize
from solvers.claims import Claim, Setting, Verdict, claims, command, report
from solvers.claims.ledger import (
    CLAIMS,
    Finding,
    claim,
    equal,
    finding,
    logit_gradient,
    order,
    random_games,
    size,
    trajectory,
    vector,
    within,
)
from solvers.claims.rspo.cases import Case, by_hand, minimizer
from solvers.claims.rspo.convexity import least_ratio
from solvers.rules import RULES, current_opponent
from solvers.update import Update
from tests.strategies import random_game, random_policy, seeds, sizes

LEDGER = Path(__file__).parents[1] / "CLAIMS.md"
EVERY = claims()
ROWS = {each.name: each for each in EVERY}

H, C, F, U = Verdict.HOLDS, Verdict.CORRECTED, Verdict.FAILS, Verdict.UNCLEAR
RSPO = {
    "regularized_game.one_equilibrium": C,
    "regularized_game.variational_inequality": H,
    "regularized_game.printed_temperature": C,
    "regularized_game.operator_is_not_constant": C,
    "rates.condition": C,
    "rates.rate[reverse_kl]": H,
    "rates.rate[forward_kl]": C,
    "rates.rate[chi2]": F,
    "rates.rate[0.1*forward_kl+0.5*reverse_kl]": C,
    "rates.rate[entropy]": H,
    "rates.rate[js]": C,
    "rates.rate[hellinger]": C,
    "rates.rate[alpha:0.5]": C,
    "convexity.strong_convexity[reverse_kl]": H,
    "convexity.strong_convexity[forward_kl]": C,
    "convexity.strong_convexity[chi2]": F,
    "convexity.strong_convexity[0.1*forward_kl+0.5*reverse_kl]": C,
    "convexity.strong_convexity[entropy]": H,
    "convexity.strong_convexity[js]": C,
    "convexity.strong_convexity[hellinger]": C,
    "convexity.strong_convexity[alpha:0.5]": C,
    "convexity.strong_convexity[alpha:-1]": C,
    "convexity.strong_convexity[alpha:3]": F,
    "convexity.who_violates": F,
    "convexity.limitation": F,
    "losses.direction": H,
    "losses.half_is_the_mean": H,
    "losses.variance_optimal_baseline": C,
    "losses.lam_is_the_temperature": C,
    "losses.half_for_the_partition": C,
    "derivation_nash_md.nash_md_as_rspo": C,
    "derivation_nash_md.line_20": F,
    "derivation_nash_md.lines_21_to_23[21]": H,
    "derivation_nash_md.lines_21_to_23[22]": H,
    "derivation_nash_md.lines_21_to_23[23]": H,
    "derivation_nash_md.line_24": C,
    "derivation_nash_md.line_25": C,
    "derivation_nash_md.nash_md_without_regularizer": C,
    "derivation_nash_md.lines_that_hold[27]": H,
    "derivation_nash_md.lines_that_hold[28]": H,
    "derivation_nash_md.lines_that_hold[31]": H,
    "derivation_nash_md.line_29": C,
    "derivation_nash_md.line_30": C,
    "derivation_omd_gmmd.line_33": C,
    "derivation_omd_gmmd.lines_34_35[34]": H,
    "derivation_omd_gmmd.lines_34_35[35]": H,
    "derivation_omd_gmmd.line_36": C,
    "derivation_omd_gmmd.line_15": H,
    "derivation_omd_gmmd.line_41": C,
    "derivation_omd_gmmd.line_44": C,
    "derivation_omd_gmmd.line_45": C,
    "derivation_omd_gmmd.line_46": C,
    "estimators.reverse_kl_square": C,
    "estimators.forward_kl_and_chi2[2]": H,
    "estimators.forward_kl_and_chi2[3]": H,
    "estimators.proof_of_c2": C,
    "estimators.estimate_of_the_value[forward_kl]": F,
    "estimators.estimate_of_the_value[chi2]": F,
    "estimators.off_policy[reverse_kl]": C,
    "estimators.off_policy[forward_kl]": C,
    "estimators.off_policy[chi2]": C,
    "estimators.clipped[forward_kl]": C,
    "estimators.clipped[chi2]": C,
    "algorithm.rspo_converges[reverse_kl]": C,
    "algorithm.rspo_converges[forward_kl]": C,
    "algorithm.rspo_converges[chi2]": C,
    "algorithm.rspo_converges[0.1*forward_kl+0.5*reverse_kl]": C,
    "algorithm.published_table[2]": C,
    "algorithm.published_table[3]": C,
    "algorithm.published_table[5]": C,
    "algorithm.contrastive_losses": F,
    "algorithm.relative_likelihood": H,
    "other_methods.sppo_converges": F,
    "other_methods.sppo_limit": H,
    "other_methods.only_reverse_kl": F,
    "other_methods.table_5[SPPO]": H,
    "other_methods.table_5[OMD]": H,
    "other_methods.table_5[Nash-MD]": H,
    "other_methods.mpo_follows_mwu": F,
    "other_methods.chi2_is_stronger": U,
}


def measured(name: str, **setting) -> Finding:
    return ROWS[name](Setting(**setting)).finding


# The ledger as it is.


def sections() -> list[str]:
    """CLAIMS.md, cut at its rows."""
    _, *rows = re.split(r"(?m)^(?=### )", LEDGER.read_text(encoding="utf-8"))
    return [re.split(r"(?m)^## ", row)[0].strip() for row in rows]


NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def agree(written: str, new: str) -> bool:
    """The same text, numbers within 5 %: the last of two digits may differ between machines."""
    if NUMBER.sub("#", written) != NUMBER.sub("#", new):
        return False
    pairs = zip(NUMBER.findall(written), NUMBER.findall(new), strict=True)
    return all(float(a) == pytest.approx(float(b), rel=0.05, abs=2e-3) for a, b in pairs)


@pytest.mark.parametrize("number", range(len(EVERY)), ids=[each.name for each in EVERY])
def test_row_is_as_written_down(number):
    row = EVERY[number](Setting())
    found = row.finding
    assert agree(sections()[number], report.section(row).strip()), (
        "CLAIMS.md is out of date: python -m solvers claims --markdown CLAIMS.md"
    )
    name = row.claim.name.removeprefix("rspo.")
    if row.claim.module == "rspo":
        assert found.verdict == RSPO[name]
    if found.verdict in (Verdict.CORRECTED, Verdict.FAILS):
        assert found.counterexample
    if found.verdict is Verdict.CORRECTED:
        assert found.correction
    if found.verdict is Verdict.HOLDS:
        assert not found.correction


def test_no_row_of_rspo_is_missing():
    names = [each.name for each in EVERY if each.module == "rspo"]
    assert names == [
        f"rspo.{name}" for name in sorted(RSPO, key=lambda n: names.index(f"rspo.{n}"))
    ]


def test_overview_counts_the_sections():
    verdicts = [re.match(r"### .*: (\w+)", section).group(1) for section in sections()]
    counted = re.findall(
        r"(?m)^\| [^|]+ \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", LEDGER.read_text()
    )
    totals = [sum(map(int, column)) for column in zip(*counted, strict=True)]
    assert totals == [verdicts.count(verdict) for verdict in Verdict]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", RSPO)
def test_verdict_does_not_depend_on_the_seed(name, seed):
    assert measured(f"rspo.{name}", seed=seed).verdict == RSPO[name]


# Rules that are broken turn their claims.


class WithoutEta(UpdateRule):
    """GMMD with τR where the step needs ητR."""

    def __call__(self, plays, step=0) -> Update:
        update = super().__call__(plays, step)
        return replace(update, tau=update.tau / update.eta)


class PushedAway(UpdateRule):
    """MMD with the sign of its pull to μ wrong."""

    def __call__(self, plays, step=0) -> Update:
        update = super().__call__(plays, step)
        return replace(update, tau=-update.tau)


def as_class(kind: type[UpdateRule], name: str) -> UpdateRule:
    return kind(**vars(RULES[name]))


MUTANTS = {
    "gmmd without the eta before tau R": (
        as_class(WithoutEta, "gmmd"),
        ["rspo.regularized_game.printed_temperature", "rspo.rates.rate[forward_kl]"],
    ),
    "mmd pushed away from mu": (
        as_class(PushedAway, "mmd"),
        ["rspo.rates.condition", "rspo.rates.rate[reverse_kl]"],
    ),
    "nash_md against the current policy": (
        replace(RULES["nash_md"], opponent=current_opponent),
        ["rspo.other_methods.table_5[Nash-MD]"],
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_broken_rule_makes_its_claims_fail(mutant):
    rule, names = MUTANTS[mutant]
    for name in names:
        whole = measured(name)
        broken = measured(name, rules={rule.name: rule})
        assert whole.verdict is not Verdict.FAILS
        assert broken.verdict is Verdict.FAILS
        assert broken.evidence != whole.evidence


# Verdicts come out of measurements.


@given(st.lists(st.booleans(), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_verdict_follows_from_what_was_measured(readings, corrected, instead):
    found = finding(
        printed={str(i): reading for i, reading in enumerate(readings)},
        corrected=corrected,
        instead=instead,
        evidence="",
        correction="so",
        counterexample="by hand",
    )
    if all(readings):
        assert (found.verdict, found.correction, found.counterexample) == (H, "", "")
    elif any(readings):
        assert found.verdict is U
    else:
        assert found.verdict is (C if corrected else F)
        assert found.correction == ("so" if corrected or instead else "")


def test_bounds_allow_rounding_and_nothing_more():
    assert within([1.0, 2.0], 2.0) == (True, 1.0)
    assert within([1.0, 2.0 + 1e-6], 2.0)[0] is False
    assert within(1e-13, 0.0) == (True, 0.0)
    assert equal([1.0], [1.0 + 1e-13])
    assert not equal([1.0], [1.0 + 1e-11])


def test_order_is_the_exponent():
    x = np.array([0.5, 0.25, 0.125])
    assert order(x, 7 * x**3) == pytest.approx(3, abs=1e-12)  # rounding of logs


def test_numbers_as_written():
    assert size(3e-13) == "< 1e-12"
    assert size(0.01234) == "0.012"
    assert size(1e-7, 1e-6) == "< 1e-06"
    assert vector([0.25, 1 / 3, -0.0]) == "(0.25, 0.333, 0)"


def test_each_value_has_its_row(monkeypatch):
    monkeypatch.setattr("solvers.claims.ledger.CLAIMS", entered := [])

    @claim("A paper", "Eq. {each}", each={"1": "one", "2": "two"}, on=("skew",))
    def counted(setting: Setting, each: str) -> Finding:
        """The number {each}
        is {text}."""
        return finding(printed=each == "1", evidence=f"{setting.rng.random():.6f}")

    first, second = (each(Setting()) for each in entered)
    assert first.claim.statement == "The number 1 is one."
    assert [row.claim.equation for row in (first, second)] == ["Eq. 1", "Eq. 2"]
    assert [row.finding.verdict for row in (first, second)] == [H, F]
    assert first.finding.evidence != second.finding.evidence  # a stream of its own
    assert first.finding == entered[0](Setting()).finding
    assert first.finding != entered[0](Setting(seed=1)).finding
    assert first.record() == {
        "paper": "A paper",
        "equation": "Eq. 1",
        "statement": "The number 1 is one.",
        "verdict": "holds",
        "correction": "",
        "evidence": first.finding.evidence,
    }


def test_names_are_unique_and_statements_whole():
    assert len({each.name for each in CLAIMS}) == len(CLAIMS)
    for each in CLAIMS:
        assert each.statement.endswith("."), each.name
        assert "{each}" not in each.statement, each.name
        assert "{text}" not in each.statement, each.name


# What the rows are measured with.


@given(seeds, sizes)
def test_complex_step_is_the_score_function(seed, n):
    game = random_game(seed, n)
    theta, current, ref = (random_policy(seed + i, n) for i in range(3))
    case = Case(game.payoff, theta, current, ref)
    values = game.payoff[0]
    numerical = case.gradient(lambda logp: (np.exp(logp) * values).sum(axis=-1))
    assert numerical == pytest.approx(logit_gradient(theta, np.exp(theta) * values), abs=1e-14)
    # KL: Σ π(log π/μ − KL) for each logit.
    ratio = theta - ref
    kl = np.exp(theta) @ ratio
    assert case.kl_gradient() == pytest.approx(np.exp(theta) * (ratio - kl), abs=1e-13)


@given(seeds, sizes, st.sampled_from(["reverse_kl", "forward_kl", "js"]), st.floats(0.0, 0.5))
def test_minimizer_is_stationary(seed, n, spec, lam):
    current, ref = random_policy(seed, n, 5.0), random_policy(seed + 1, n, 5.0)
    target = current + 0.2 * np.random.default_rng(seed).normal(size=n)
    regularizer = parse(spec)
    logp = minimizer(current, target, regularizer, lam, ref)
    slope = 2 * np.exp(current) * (logp - target)
    slope = slope + lam * np.exp(logp) * regularizer.gradient(logp, ref)
    # Newton's method stops at 1e-14 in log π; weights and slopes are of order 10.
    assert logit_gradient(logp, slope) == pytest.approx(np.zeros(n), abs=1e-11)


@given(seeds, st.sampled_from(["forward_kl", "js", "hellinger", "alpha:0.5", "chi2"]))
def test_search_stays_above_the_modulus(seed, spec):
    mu = np.random.default_rng(seed).dirichlet(np.ones(3), size=1) * 0.97 + 0.01
    least = least_ratio(parse(spec), mu, np.random.default_rng(seed))
    m = parse(spec).modulus(np.log(mu[0]))
    # The modulus is a minimum found to 1e-9 in its argument.
    assert least[0] >= m - 1e-8
    assert least[0] <= m + 0.05


def test_trajectory_is_the_rule_step_by_step():
    game, start = zoo.rock_paper_scissors(), np.log([0.5, 0.3, 0.2])
    points = trajectory(replace(RULES["mwu"], eta=0.5), game, start, start, 2)
    second = normalize(start + 0.5 * game.payoff @ np.exp(start))
    assert points[1] == pytest.approx(second, abs=1e-15)
    assert points.shape == (3, 3)


def test_numbers_of_the_worked_example():
    """What `HAND` says of the example by hand."""
    case = by_hand()
    assert case.wins(case.current) == pytest.approx([0.58, 0.18], abs=1e-15)
    assert case.wins(case.mixture) - 0.5 == pytest.approx([0.1045, -0.2955], abs=5e-5)
    assert case.theta - case.current == pytest.approx([-0.2877, 0.6931], abs=5e-5)
    assert case.mean(np.array([1.0, 0.0]))[0] == pytest.approx(0.24, abs=1e-15)
    under_current = logit_gradient(case.theta, np.exp(case.current) * np.array([1.0, 0.0]))
    assert under_current[0] == pytest.approx(0.32, abs=1e-15)


# On the user's own game, and the command.


@pytest.fixture
def few(monkeypatch) -> list[Claim]:
    """Three quick claims instead of all: two on a given game, one of them with a curve."""
    names = (
        "losses.half_for_the_partition",
        "derivation_nash_md.line_20",
        "estimators.reverse_kl_square",
    )
    chosen = [ROWS[f"rspo.{name}"] for name in names]
    monkeypatch.setattr(command, "claims", lambda: chosen)
    return chosen


def arguments(**changed) -> Namespace:
    defaults = dict.fromkeys(["paper", "game", "kind", "prior", "json", "markdown", "plot"])
    return Namespace(**{**defaults, "reference": "uniform", "seed": 0, **changed})


def test_measured_on_a_given_game(few, capsys):
    assert command.run(arguments(game="rps", json="-")) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert [row["equation"] for row in rows] == ["Eq. 9", "Eq. 20"]
    assert set(rows[0]) == {"paper", "equation", "statement", "verdict", "correction", "evidence"}
    assert "2 claims: 1 corrected, 1 fails" in captured.err


@pytest.mark.parametrize("kind", ["preference", "skew"])
def test_every_claim_that_says_so_takes_a_game(kind):
    league = zoo.league()
    game = league if kind == "preference" else SkewGame(2 * league.payoff - 1)
    setting = Setting(game, np.full(game.n, -np.log(game.n)))
    quick = [each for each in EVERY if kind in each.on and each.module == "rspo"]
    quick = [each for each in quick if ".derivation" in each.name or ".losses" in each.name]
    for each in quick:
        assert each(setting).finding.verdict == RSPO[each.name.removeprefix("rspo.")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "game",
    [
        random_games(np.random.default_rng(0), 3, 4),
        random_games(np.random.default_rng(1), 1, 2),
        SkewGame(20 * random_games(np.random.default_rng(2), 2, 5).payoff - 10),
        zoo.get("random:60"),
    ],
    ids=["batch", "two actions", "skew", "sixty actions"],
)
def test_every_claim_takes_any_game(game):
    for each in EVERY:
        if game.kind in each.on:
            record = each(Setting(game)).record()
            assert "nan" not in record["evidence"], each.name


def test_markdown_and_picture(few, tmp_path, capsys):
    written, picture = tmp_path / "claims.md", tmp_path / "claims.svg"
    assert command.run(arguments(markdown=written, plot=picture)) == 0
    text = written.read_text(encoding="utf-8")
    assert text.count("### ") == 3
    assert "| RSPO | 0 | 2 | 1 | 0 |" in text
    assert "B = ½ instead of the log-partition" in picture.read_text(encoding="utf-8")
    assert capsys.readouterr().out.rstrip().endswith(str(picture))


def test_table_names_paper_equation_and_verdict(few):
    console = Console(file=io.StringIO(), width=200)
    console.print(report.table([each(Setting()) for each in few]))
    text = console.file.getvalue()
    for word in ("RSPO", "Eq. 20", "fails", "corrected", "Prop. C.1", "Instead:"):
        assert word in text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"paper": "DPO"}, "choose from RSPO"),
        ({"seed": -1}, "--seed"),
        ({"reference": "mu.txt"}, "--game"),
        ({"kind": "skew"}, "--game"),
        ({"game": "matching_pennies"}, "symmetric"),
        ({"game": "nosuchgame"}, "unknown game"),
        ({"game": "flat.csv"}, "all payoffs are equal"),
        ({"plot": Path("claims.txt")}, ".png"),
    ],
)
def test_bad_input_is_one_line(few, tmp_path, monkeypatch, changed, message):
    monkeypatch.chdir(tmp_path)
    Path("flat.csv").write_text("0.5,0.5\n0.5,0.5\n")
    with pytest.raises(InputError, match=re.escape(message)) as error:
        command.run(arguments(**changed))
    assert "\n" not in str(error.value)


def test_nothing_to_measure_is_said(monkeypatch):
    chosen = [ROWS["rspo.estimators.reverse_kl_square"]]
    monkeypatch.setattr(command, "claims", lambda: chosen)
    with pytest.raises(InputError, match="given game"):
        command.run(arguments(game="rps"))
    with pytest.raises(InputError, match="curve"):
        command.run(arguments(plot=Path("claims.png")))


def test_command_line(few, capsys):
    assert main(["claims", "--paper", "rspo", "--json", "-"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert main(["claims", "--paper", "DPO"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["claims", "--game", "rps", "--as", "zero_sum"]) == 2
