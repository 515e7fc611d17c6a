from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from games.errors import InputError
from llm import load_config
from llm.embedded import game
from llm.evaluation import comparison_report
from llm.evaluation.curves import figure_of, panels_of
from llm.evaluation.exact import EnumeratedGame
from llm.evaluation.metrics import (
    ENTROPY,
    KL_TO_REFERENCE,
    LENGTH,
    METRICS,
    WIN_RATE,
    Evaluation,
    Metric,
    load_metrics,
    measure_all,
)
from llm.evaluation.report import Report, rates_line, table
from llm.evaluation.statistics import Estimate, bleu, over_prompts, self_bleu
from llm.run.comparison import compare
from llm.train import main, run_training
from solvers import duality_gap
from solvers.arrays import against, dot
from solvers.divergences import parse
from solvers.loop import kl_divergence
from solvers.rules import get_rule

# The sentences of nltk's documentation of sentence_bleu, from Papineni et al. (2002).
GUIDE = (
    "It is a guide to action which ensures that the military always obeys the commands of the party"
)
REFERENCES = (
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the "
    "command of the Party",
    "It is the practical guide for the army always to heed the directions of the party",
)


def test_bleu_of_the_documented_example() -> None:
    hypothesis = GUIDE.split()
    references = [reference.split() for reference in REFERENCES]
    # The figures printed in nltk's docstrings of sentence_bleu and SmoothingFunction.
    assert bleu(hypothesis, references) == pytest.approx(0.5045, abs=1e-4)
    assert bleu(hypothesis, references[:1]) == pytest.approx(0.4118, abs=1e-4)


def geometric(*precisions: Fraction | float) -> float:
    return math.prod(float(p) for p in precisions) ** (1 / len(precisions))


@pytest.mark.parametrize(
    ("hypothesis", "references", "order", "expected"),
    [
        ("a b c d", ["a b c d"], 3, 1.0),
        # 3 of 4 single tokens; pairs ab, bc of 3; triple abc of 2.
        ("a b c x", ["a b c d"], 3, geometric(Fraction(3, 4), Fraction(2, 3), Fraction(1, 2))),
        # a counts as often as in one reference at most; no pair, no triple matches: 0.1 of one.
        ("a a a", ["a b", "b a"], 3, geometric(Fraction(1, 3), 0.1 / 2, 0.1 / 1)),
        # Clipping takes the larger count among the references.
        ("a a", ["a", "a a a"], 1, 1.0),
        # Shorter than the closest reference by two of four: exp(1 - 4/2).
        ("a b", ["a b c d"], 1, math.exp(-1)),
        # Of two equally close references the shorter one counts: no penalty.
        ("a b c", ["a b", "a b c d"], 1, 1.0),
        # Too short for a triple: its denominator is 1.
        ("a b", ["a b"], 3, geometric(1, 1, 0.1)),
        ("x y", ["a b"], 3, 0.0),
        ("", ["a b"], 3, 0.0),
    ],
)
def test_bleu_by_hand(hypothesis: str, references: list[str], order: int, expected: float) -> None:
    ours = bleu(hypothesis.split(), [r.split() for r in references], order=order)
    # One product of roots against a sum of logarithms.
    assert ours == pytest.approx(expected, rel=1e-12)


texts = st.lists(st.sampled_from("abcd"), max_size=8).map(" ".join)


@given(st.lists(texts, min_size=2, max_size=4))
def test_self_bleu_is_bounded_and_blind_to_order(responses: list[str]) -> None:
    score = self_bleu(responses)
    # One rounding error above 1 at most.
    assert 0 <= score <= 1 + 1e-12
    assert self_bleu(responses[::-1]) == pytest.approx(score, rel=1e-12)


def test_self_bleu_of_equal_and_of_disjoint_responses() -> None:
    assert self_bleu(["one two three four"] * 3) == pytest.approx(1, rel=1e-12)
    assert self_bleu(["one two three", "four five six"]) == 0


def test_self_bleu_is_the_mean_over_responses() -> None:
    responses = ["a b c x", "a b c d", "y z"]
    tokens = [r.split() for r in responses]
    expected = [
        bleu(tokens[0], [tokens[1], tokens[2]], order=3),
        bleu(tokens[1], [tokens[0], tokens[2]], order=3),
        bleu(tokens[2], [tokens[0], tokens[1]], order=3),
    ]
    assert self_bleu(responses) == pytest.approx(sum(expected) / 3, rel=1e-12)


def test_self_bleu_reads_200_tokens_and_splits_punctuation() -> None:
    shared = "word " * 200
    assert self_bleu([shared + "left", shared + "right"]) == pytest.approx(1, rel=1e-12)
    assert self_bleu(["a b, c.", "a b , c ."]) == pytest.approx(1, rel=1e-12)


def test_estimates_treat_prompts_as_the_units() -> None:
    values = np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    mean, error = over_prompts(values)
    # Per-prompt means .5, 1, 0, .5: variance 1/6.
    assert mean == 0.5
    assert error == pytest.approx(math.sqrt(1 / 6 / 4), rel=1e-12)
    assert math.isnan(over_prompts(values[:1]).standard_error)
    weights = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    mean, error = over_prompts(values, weights)
    # .75, 1, 0, 0: variance (.3125² + .5625² + 2 · .4375²) / 3.
    assert mean == pytest.approx(0.4375, rel=1e-12)
    assert error == pytest.approx(math.sqrt((0.3125**2 + 0.5625**2 + 2 * 0.4375**2) / 12))


# --- metrics of an evaluation ---------------------------------------------------------------------

EXACT = (WIN_RATE, KL_TO_REFERENCE, ENTROPY, LENGTH)  # defined for samples and for enumerations


def evaluation(**given: object) -> Evaluation:
    """Two prompts with two samples each, and one of μ."""
    known = {
        "t": 1,
        "prompts": ["x", "y"],
        "texts": [["a", "b"], ["a a", "c"]],
        "token_counts": np.array([[1, 1], [2, 1]]),
        "logp": np.log([[0.5, 0.25], [0.2, 0.4]]),
        "logp_ref": np.log([[0.25, 0.25], [0.4, 0.4]]),
        "weights": np.full((2, 2), 0.5),
        "reference_texts": [["b"], ["b"]],
        "reference_weights": np.ones((2, 1)),
        "preference": np.array([[[0.75], [0.5]], [[0.25], [1.0]]]),
    }
    return Evaluation(**{**known, **given})  # pyright: ignore[reportArgumentType]


def test_samples_estimate_the_metrics_of_an_enumeration() -> None:
    """Averaged over all draws, weighted by their probability: the exact value of each metric."""
    rng = np.random.default_rng(0)
    n, pi, mu = 3, rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3))
    wins, lengths = rng.random((n, n)), np.array([1, 2, 5])

    def of(own: Sequence[int], base: Sequence[int], weights: np.ndarray, ref: np.ndarray, **given):
        return evaluation(
            prompts=["x"],
            texts=[["r"] * len(own)],
            token_counts=lengths[None, own],
            logp=np.log(pi)[None, own],
            logp_ref=np.log(mu)[None, own],
            weights=weights[None],
            reference_texts=[["r"] * len(base)],
            reference_weights=ref[None],
            preference=wins[np.ix_(own, base)][None],
            **given,
        )

    exact = measure_all(of(range(n), range(n), pi, mu, enumerated=True), EXACT)
    expected = dict.fromkeys((metric.name for metric in EXACT), 0.0)
    half = np.full(2, 0.5)
    for i, j, k, m in itertools.product(range(n), repeat=4):
        sampled = measure_all(of([i, j], [k, m], half, half), EXACT)
        for name in expected:
            expected[name] += pi[i] * pi[j] * mu[k] * mu[m] * sampled[name]
    for name, value in expected.items():
        # 81 products of numbers of order 1.
        assert value == pytest.approx(exact[name], abs=1e-12), name
    assert exact["kl_to_reference"] == pytest.approx(np.sum(pi * np.log(pi / mu)))
    assert exact["entropy"] == pytest.approx(-np.sum(pi * np.log(pi)))
    assert exact["win_rate"] == pytest.approx(pi @ wins @ mu)
    assert exact["standard_errors"] == {}


class Tabular:
    """Stands for a policy whose log-probabilities are a table."""

    def __init__(self, logp: np.ndarray) -> None:
        self.logp = torch.tensor(logp)

    def log_probs(self, *given: object, **known: object) -> torch.Tensor:
        return self.logp


def test_the_embedded_game_is_measured_exactly() -> None:
    rng, payoff = np.random.default_rng(1), game.preference()
    logp, mu, star, start = np.log(rng.dirichlet(np.ones(125), size=(4, 2)))
    rule = get_rule("gmmd", eta=1.0, tau=0.1, regularizer=parse("reverse_kl"))
    known = EnumeratedGame(rule, payoff, payoff, [], 1.0, mu, start, star)
    found = measure_all(Evaluation.of_all_responses(known, Tabular(logp), t=0), METRICS)
    expected = {
        "win_rate": dot(np.exp(logp), against(payoff.payoff, np.exp(mu))),
        "kl_to_reference": kl_divergence(logp, mu),
        "entropy": -dot(np.exp(logp), logp),
        "length": np.full(2, 3.0),
        "kl_to_equilibrium": kl_divergence(star, logp),
        "exact_kl_to_equilibrium": kl_divergence(star, start),
        "kl_to_exact_iterate": kl_divergence(start, logp),
        "duality_gap": duality_gap(payoff, logp, None, *rule.target, mu),
    }
    for name, values in expected.items():
        # Sums of 125 products in another order.
        assert found[name] == pytest.approx(values.mean(), abs=1e-12), name
    assert found["self_bleu"] is None
    assert found["styles"] is None
    assert found["target"] == "the equilibrium of the game at temperature τ = 0.1 of reverse_kl"
    assert found["standard_errors"] == {}
    (row, *_) = (texts for texts in known.texts)
    assert [game.number_of(text) for text in row] == list(range(125))


def test_values_are_weighted_and_errors_are_over_prompts() -> None:
    metric = Metric.of_responses("number", lambda e: [[1.0, 3.0], [2.0, 2.0]])
    found = measure_all(evaluation(weights=np.array([[0.25, 0.75], [1.0, 0.0]])), [metric])
    assert found["number"] == pytest.approx((2.5 + 2.0) / 2, rel=1e-15)
    assert found["standard_errors"] == {"number": pytest.approx(0.25, rel=1e-12)}
    exact = measure_all(evaluation(enumerated=True), [metric])
    assert exact == {"number": 2.0, "standard_errors": {}}


def test_what_a_metric_may_return() -> None:
    metrics = [
        Metric("undefined", lambda e: None),
        Metric("nan", lambda e: math.nan),
        Metric("whole", lambda e: 3),
        Metric("numpy", lambda e: np.float32(0.5)),
        Metric("text", lambda e: "words"),
        Metric("estimate", lambda e: Estimate(0.5, 0.1)),
        Metric("single", lambda e: Estimate(0.5, math.nan)),
        Metric("classes", lambda e: {"a": Estimate(0.5, 0.1), "b": 0.25}),
    ]
    found = measure_all(evaluation(), metrics)
    assert found == {
        "undefined": None,
        "nan": None,
        "whole": 3,
        "numpy": 0.5,
        "text": "words",
        "estimate": 0.5,
        "single": 0.5,
        "classes": {"a": 0.5, "b": 0.25},
        "estimate_error": 0.1,
        "classes_error": {"a": 0.1},
        "standard_errors": {"estimate": 0.1, "classes": {"a": 0.1}},
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def fails(evaluation: Evaluation) -> float:
    raise KeyError("colour")


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (Metric("mine", fails), "metric 'mine' cannot be computed: KeyError: 'colour'"),
        (Metric("mine", lambda e: np.ones(2)), r"one number, got an array of shape \(2,\)"),
        (Metric("mine", lambda e: Estimate(0.5, 0.1), format="d"), "Unknown format code 'd'"),
        (
            Metric.of_responses("mine", lambda e: np.ones((2, 3))),
            r"one value per response has shape \(2, 2\), not \(2, 3\)",
        ),
        (
            Metric("mine", lambda e: e.mean_over_prompts([1.0])),
            r"one value per prompt has shape \(2,\), not \(1,\)",
        ),
    ],
)
def test_a_metric_that_fails_is_named_in_one_line(metric: Metric, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        measure_all(evaluation(), [metric])
    assert "\n" not in str(caught.value)


brevity = Metric.of_responses("brevity", lambda evaluation: -evaluation.token_counts)
taken = Metric("win_rate", lambda evaluation: 0.5)


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        (["tests.test_metrics:taken"], "evaluation.metrics: the name 'win_rate' is in use"),
        ([fails], "a function is not a Metric"),
        ([brevity, brevity], "the name 'brevity' is in use"),
        ([Metric("iteration", lambda e: 0.0)], "the name 'iteration' is in use"),
        (["tests.test_metrics:EXACT"], "metric 'tests.test_metrics:EXACT' is a tuple"),
        (["tests.test_metrics:absent"], "metric 'tests.test_metrics:absent' cannot be imported"),
    ],
)
def test_metrics_that_cannot_be_used_are_refused(named: list, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        load_metrics(named)


def test_metrics_are_objects_or_import_paths() -> None:
    assert load_metrics([]) == METRICS
    assert load_metrics([brevity])[-1] is brevity
    (found,) = load_metrics(["tests.test_metrics:brevity"])[len(METRICS) :]
    assert found.name == "brevity"
    assert found.heading == ("brevity", "")
    assert found.panel_title == "brevity"


# --- table and picture ----------------------------------------------------------------------------


def rows_of(*values: object, name: str = "mine", errors: float | None = None) -> list[dict]:
    found = [{"iteration": t, name: value} for t, value in enumerate(values)]
    return [row | {"standard_errors": {name: errors}} for row in found] if errors else found


MINE = Metric("mine", lambda evaluation: 0.0, unit="units")


def test_a_standard_error_is_shown_where_it_is_known() -> None:
    (head, _, first, second) = table(rows_of(0.5, 0.75, errors=0.0123), [MINE])
    assert first.split() == ["0", "0.500±0.012"]
    assert second.split() == ["1", "0.750±0.012"]
    assert head.split() == ["t", "mine"]
    # A line that an earlier version stored has none.
    assert table(rows_of(0.5), [MINE])[2].split() == ["0", "0.500"]
    hidden = replace(MINE, show_error=False)
    assert table(rows_of(0.5, errors=0.1), [hidden])[2].split() == ["0", "0.500"]


def test_rates_keep_three_digits_and_name_what_they_count() -> None:
    rates = {"tokens sampled": 0.03149, "tokens trained": 12345.6, "comparisons": 2.0}
    assert rates_line(rates) == (
        "per second: 0.0315 tokens of responses sampled, 12346 tokens of prompts and responses "
        "trained on, 2 comparisons"
    )


def test_a_column_of_what_is_unknown_at_first_stays_in_place() -> None:
    console = Console(file=io.StringIO(), width=200)
    optional = replace(MINE, name="other", optional=True)
    report = Report(console, 2, [MINE, optional])
    for row in rows_of(None, 0.5):
        report.row(row)
    heading, _, first, second = console.file.getvalue().splitlines()
    assert heading.split() == ["t", "mine"]
    assert (first.split(), second.split()) == (["0", "–"], ["1", "0.500"])
    assert len(first) == len(second)


def test_classes_have_a_column_each_and_share_it_with_the_equilibrium() -> None:
    rows = [
        {
            "iteration": t,
            "styles": {"plain": 0.8 - t / 10, "list": 0.2 + t / 10},
            "equilibrium_styles": {"plain": 0.56, "list": 0.44},
        }
        for t in range(2)
    ]
    first, second, *_, last = table(rows, METRICS)
    assert "plain" in first
    assert "π* 0.56" in second
    assert last.split()[-4:] == ["0.70", "0.30", "–", "–"]  # no loss, no seconds
    (panel,) = panels_of(rows)
    assert panel.title == "share of each style (dotted: π*)"
    assert [line.label for line in panel.lines] == ["plain", "list", None, None]
    assert [line.color for line in panel.lines[:2]] == [line.color for line in panel.lines[2:]]
    assert panel.lines[2].values == [0.56, 0.56]


def test_a_bar_is_two_standard_errors_long() -> None:
    rows = rows_of(0.5, 0.75, errors=0.1)
    (axes,) = figure_of(rows, [MINE]).axes
    assert axes.get_title(loc="left") == "mine in units"
    (line,), (bars,) = axes.lines, axes.collections
    assert list(line.get_ydata()) == [0.5, 0.75]
    ends = [bar[:, 1].tolist() for bar in bars.get_segments()]
    assert ends == [pytest.approx([0.4, 0.6]), pytest.approx([0.65, 0.85])]
    figure = figure_of(rows_of(0.5, 0.75), [MINE])
    assert not figure.axes[0].collections[0].get_segments()
    assert "bars" in figure_of(rows, [MINE]).get_suptitle()
    assert "bars" not in figure.get_suptitle()


def test_an_axis_does_not_magnify_noise() -> None:
    """Values that differ by a hundredth of their standard error: the bars are a quarter of it."""
    (axes,) = figure_of(rows_of(0.5, 0.501, errors=0.1), [MINE]).axes
    low, high = axes.get_ylim()
    assert high - low >= 0.8 - 1e-12
    assert low < 0.4 < 0.6 < high


def test_a_level_is_drawn_as_a_line() -> None:
    metric = replace(MINE, level=0.5)
    (axes,) = figure_of(rows_of(0.6, 0.7), [metric]).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.5, 0.5], [0.6, 0.7]]


def test_a_panel_shows_what_is_known_and_changes() -> None:
    assert panels_of(rows_of(3.0, 3.0), [MINE]) == []
    assert panels_of(rows_of("a", "b"), [MINE]) == []
    (panel,) = panels_of(rows_of(None, 1.0, 2.0), [MINE])
    assert math.isnan(panel.lines[0].values[0])
    assert panel.lines[0].values[1:] == [1.0, 2.0]


def test_a_panel_is_drawn_where_only_a_guest_changes() -> None:
    host, guest = replace(MINE, name="asked"), replace(MINE, name="made", drawn_with="asked")
    rows = [{"iteration": t, "asked": 4.0, "made": 3.0 + t} for t in range(3)]
    (panel,) = panels_of(rows, [host, guest])
    assert [line.values for line in panel.lines] == [[4.0] * 3, [3.0, 4.0, 5.0]]
    # 1e-12 is the rounding of a mean of lengths.
    assert panels_of(rows_of(3.0, 3.0 + 1e-12), [MINE]) == []


def test_the_exact_iterate_is_drawn_with_the_model_on_a_logarithmic_axis() -> None:
    rows = [
        {
            "iteration": t,
            "kl_to_equilibrium": 0.6 / (t + 1),
            "exact_kl_to_equilibrium": 0.5 / (t + 1),
        }
        for t in range(3)
    ]
    (axes,) = figure_of(rows, METRICS).axes
    assert axes.get_yscale() == "log"
    assert [line.get_label() for line in axes.lines] == ["model", "exact iterate"]
    assert axes.lines[1].get_linestyle() == "--"


# --- a metric of one's own in a run ---------------------------------------------------------------

OWN = """
from llm.evaluation.metrics import Metric

first_letter = Metric.of_responses(
    "first_letter",
    lambda evaluation: [[float(text[:1] in "abT") for text in row] for row in evaluation.texts],
    unit="responses",
)
"""
TINY = {
    "embedded-game": ("data.prompts_per_iteration=16", "train.epochs=1"),
    "embedded-text": ("data.prompts_per_iteration=8", "sample.max_new_tokens=12",
                      "evaluation.prompts=6"),
}  # fmt: skip


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "my_own_metrics.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return [
        "iterations=1",
        "train.batch_size=20",
        "train.micro_batch_size=20",
        "evaluation.metrics=[my_own_metrics:first_letter]",
        f"output_dir={tmp_path / 'run'}",
    ]


@pytest.mark.parametrize("name", TINY)
def test_a_metric_of_ones_own_is_measured_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, words: list[str], name: str
) -> None:
    drawn = []

    def kept(path: Path, rows: Sequence[dict], metrics: Sequence[Metric]) -> bool:
        drawn.extend(axes.get_title(loc="left") for axes in figure_of(rows, metrics).axes)
        return False

    monkeypatch.setattr("llm.run.session.draw_curves", kept)
    config = load_config(name, [*TINY[name], *words])
    run = run_training(config, Console(file=io.StringIO(), width=200))
    values = [row["first_letter"] for row in run.metrics()]
    assert 0 < values[0] < 1
    assert "first letter in responses" in drawn
    shown = table(run.metrics(), load_metrics(config.evaluation.metrics))
    assert "first" in shown[0]
    for value, row, line in zip(values, run.metrics(), shown[2:], strict=True):
        error = row["standard_errors"].get("first_letter")
        assert (error is None) == (name == "embedded-game")
        cell = f"{value:.3f}" if error is None else f"{value:.3f}±{error:.3f}"
        assert cell in line.split()
    # A finished run is shown with it, too.
    assert main(["--config", name, *TINY[name], *words]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == shown


def test_a_metric_of_ones_own_is_compared(tmp_path: Path, words: list[str]) -> None:
    words = [*words, *TINY["embedded-game"]]
    progress = Console(file=io.StringIO(), width=200)
    found = compare(run_training, "embedded-game", ["sppo"], words, progress)
    (row,) = found.record()["recipes"]
    values = [point["first_letter"] for point in row["trace"]]
    assert row["first_letter"] == values[-1]
    assert row["trace"][0]["standard_errors"] == {}
    assert "first" in progress.file.getvalue()
    console = Console(file=io.StringIO(), width=400)
    comparison_report.show(found.record(), console, found.metrics)
    assert f"{values[-1]:.3f}" in console.file.getvalue()
    figure = comparison_report.picture(found.record(), found.metrics)
    axes = figure.axes[3]  # after three of the package
    assert axes.get_title(loc="left") == "first letter in responses"
    assert list(axes.lines[0].get_ydata()) == values


def test_a_metric_that_cannot_be_loaded_leaves_nothing(tmp_path: Path, capsys) -> None:
    words = ["evaluation.metrics=[my_own_metrics:absent]", f"output_dir={tmp_path / 'run'}"]
    assert main(["--config", "embedded-game", *words]) == 2
    assert "metric 'my_own_metrics:absent'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
