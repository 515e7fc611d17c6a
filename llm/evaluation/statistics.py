"""Means with standard errors, and BLEU: the statistics that metrics are made of."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from solvers.arrays import dot


class Estimate(NamedTuple):
    """A mean, and its standard error: NaN where that is not known, or where the mean is exact."""

    mean: float
    standard_error: float


def over_prompts(
    values: NDArray[np.floating], weights: NDArray[np.floating] | None = None
) -> Estimate:
    """(B, ...) -> mean over the prompts; the B prompts are the independent units of its error.

    `weights`, of the same shape and summing to 1 for each prompt, average the values of a prompt;
    without them all values count alike. The error from a single prompt is NaN.
    """
    values = np.asarray(values, dtype=float)
    if weights is None:
        means = values.reshape(len(values), -1).mean(-1)
    else:
        means = dot(weights.reshape(len(values), -1), values.reshape(len(values), -1))
    if len(means) == 1:
        return Estimate(float(means[0]), math.nan)
    return Estimate(float(means.mean()), float(means.std(ddof=1) / math.sqrt(len(means))))


def self_bleu(texts: Sequence[str], *, order: int = 3, max_tokens: int = 200) -> float:
    """K >= 2 responses to one prompt -> mean BLEU of each against the others, in [0, 1].

    Low values mean diverse responses, 1 means identical ones. As in RSPO: n-grams up to 3,
    smoothing method 1, the first 200 tokens. Differs from RSPO's published code in the tokens:
    words and single punctuation marks by a regular expression, not nltk's tokenizer.
    """
    tokens = [re.findall(r"\w+|[^\w\s]", text)[:max_tokens] for text in texts]
    scores = [bleu(own, tokens[:k] + tokens[k + 1 :], order=order) for k, own in enumerate(tokens)]
    return math.fsum(scores) / len(scores)


def bleu(
    hypothesis: Sequence[str], references: Sequence[Sequence[str]], *, order: int = 4
) -> float:
    """Sentence BLEU in [0, 1] with uniform weights and smoothing method 1 (Chen and Cherry, 2014).

    An n-gram order without a match counts as 0.1 of a match; without a match of single tokens the
    score is 0.
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
