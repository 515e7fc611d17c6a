"""TODO llm.evaluation.measure."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llm.evaluation import statistics

# TODO module import metrics
from llm.judges.model import Judge
from llm.judges.stored import judge_responses
from llm.sampling.responses import Responses
from llm.storage.chunks import Work
from llm.storage.files import Record


def describe(own: Responses) -> Record:
    """Metrics of π_t from its responses alone."""
    return {
        "kl_to_reference": statistics.kl(own.logp, own.logp_ref).mean,
        "entropy": statistics.entropy(own.logp).mean,
        "length": float(own.lengths.mean()),
        "self_bleu": float(np.mean([statistics.self_bleu(texts) for texts in own.texts])),
    }


def evaluate(
    work: Work, directory: Path, judge: Judge, own: Responses, reference: Responses
) -> Record:
    """Metrics of π_t from its responses and those of μ to the same prompts."""
    both = [ours + theirs for ours, theirs in zip(own.texts, reference.texts, strict=True)]
    preference = judge_responses(work, directory, judge, own.prompts, both)
    k = own.logp.shape[1]
    return describe(own) | {"win_rate": statistics.win_rate(preference[:, :k, k:]).mean}
