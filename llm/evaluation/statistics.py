"""Numbers that describe a batch of sampled responses: entropy, divergence, wins, variety."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Estimate(NamedTuple):
    """A mean over prompts and its standard error (NaN from a single prompt)."""

    mean: float
    standard_error: float


def over_prompts(values: NDArray[np.floating]) -> Estimate:
    """(B, ...) -> mean of all entries; for its error the B prompts are the independent units."""
    means = np.asarray(values, dtype=float).reshape(len(values), -1).mean(-1)
    if len(means) == 1:
        return Estimate(float(means[0]), math.nan)
    return Estimate(float(means.mean()), float(means.std(ddof=1) / math.sqrt(len(means))))


def kl(log_probs: NDArray[np.floating], log_probs_ref: NDArray[np.floating]) -> Estimate:
    """(B, K), (B, K) -> KL(π‖μ) in nats, as E_π[log π − log μ] over responses sampled from π."""
    return over_prompts(np.asarray(log_probs, float) - np.asarray(log_probs_ref, float))


def entropy(log_probs: NDArray[np.floating]) -> Estimate:
    """(B, K) -> entropy of a response in nats, as −E_π[log π] over responses sampled from π."""
    return over_prompts(-np.asarray(log_probs, float))


def win_rate(preference: NDArray[np.floating]) -> Estimate:
    """(B, K, M) -> P(π ≻ opponent): mean preference for π's K responses over the other's M."""
    return over_prompts(preference)


def self_bleu(texts: Sequence[str], *, order: int = 3, max_tokens: int = 200) -> float:
    """K >= 2 responses to one prompt -> mean BLEU of each against the others; 1: all alike.

    RSPO's measure of (lack of) variety: n-grams up to 3, smoothing method 1, the first 200 tokens.
    Differs from its published code in the tokens: words and single punctuation marks by a regular
    expression, not nltk's tokenizer.
    """
    tokens = [re.findall(r"\w+|[^\w\s]", text)[:max_tokens] for text in texts]
    scores = [bleu(own, tokens[:k] + tokens[k + 1 :], order=order) for k, own in enumerate(tokens)]
    return math.fsum(scores) / len(scores)


def bleu(
    hypothesis: Sequence[str], references: Sequence[Sequence[str]], *, order: int = 4
) -> float:
    """Sentence BLEU in [0, 1] with uniform weights and smoothing method 1 (Chen and Cherry, 2014).

    An order without a match counts 0.1 of one; without a match of single tokens the score is 0.
    Agrees with nltk's sentence_bleu under SmoothingFunction().method1.
    """
    log_precision = 0.0
    for n in range(1, order + 1):
        own = _ngrams(hypothesis, n)
        # Counter's | is the maximum over references, its & the clipping (Papineni et al., 2002).
        most = Counter[tuple[str, ...]]()
        for reference in references:
            most |= _ngrams(reference, n)
        matches = (own & most).total()
        if n == 1 and matches == 0:
            return 0.0
        log_precision += math.log((matches or 0.1) / max(1, own.total())) / order
    length = len(hypothesis)
    closest = min((abs(len(r) - length), len(r)) for r in references)[1]
    return math.exp(log_precision + min(0.0, 1.0 - closest / length))


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
