from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.evaluation.statistics import bleu, entropy, kl, over_prompts, self_bleu, win_rate

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
    assert win_rate(values[:, :, None]) == (mean, error)


def test_sampled_estimates_are_unbiased_by_enumeration() -> None:
    """Averaged over every pair of draws, weighted by its probability: the exact KL and entropy."""
    pi, mu = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    pairs = [(i, j) for i in range(3) for j in range(3)]
    weight = [pi[i] * pi[j] for i, j in pairs]
    drawn = [(np.log(pi[[i, j]])[None], np.log(mu[[i, j]])[None]) for i, j in pairs]
    expected_kl = np.sum(pi * np.log(pi / mu))
    expected_entropy = -np.sum(pi * np.log(pi))
    assert np.dot(weight, [kl(p, m).mean for p, m in drawn]) == pytest.approx(expected_kl)
    assert np.dot(weight, [entropy(p).mean for p, _ in drawn]) == pytest.approx(expected_entropy)
