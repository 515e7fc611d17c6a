"""Judging and selecting responses in resumable chunks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llm.data.examples import Prompt
from llm.judges.model import Conversation, Judge
from llm.storage.chunks import Chunk, Work
from llm.storage.files import Record
from solvers.tournament import Ends, round_robin, tournament


def judge_responses(
    work: Work,
    directory: Path,
    judge: Judge,
    prompts: Sequence[Prompt],
    texts: Sequence[Sequence[str]],
) -> np.ndarray:
    """B prompts, B × K responses -> (B, K, K) preferences."""

    def compute(chunk: Chunk) -> list[Record]:
        began = time.perf_counter()
        asked = [as_judged(prompt) for prompt in prompts[chunk.slice]]
        tables = judge(asked, texts[chunk.slice])
        pairs = len(tables) * comparisons(tables.shape[-1])
        work.count("comparisons", pairs, time.perf_counter() - began)
        return [{"preference": table.tolist()} for table in tables]

    rows = work.run(directory, len(prompts), compute)
    return np.array([row["preference"] for row in rows])


def comparisons(k: int) -> int:
    """Number of pairs among K responses; both orders of a pair count once."""
    return k * (k - 1) // 2


def select_responses(
    work: Work,
    directory: Path,
    judge: Judge,
    prompts: Sequence[Prompt],
    texts: Sequence[Sequence[str]],
    how: str,
) -> list[Record]:
    """B prompts, B × K responses -> best and worst of each, by `tournament` or `round_robin`.

    A tournament asks the judge only for the pairs that are matched.
    """

    def compute(chunk: Chunk) -> list[Record]:
        began = time.perf_counter()
        asked = [as_judged(prompt) for prompt in prompts[chunk.slice]]
        ends = _ends(judge, asked, texts[chunk.slice], how)
        pairs = len(asked) * ends.comparisons
        work.count("comparisons", pairs, time.perf_counter() - began)
        found = zip(ends.best, ends.worst, ends.preference, ends.passed, strict=True)
        return [
            {
                "best": int(best),
                "worst": int(worst),
                "preference": float(preference),
                "passed": bool(passed),
                "comparisons": ends.comparisons,
            }
            for best, worst, preference, passed in found
        ]

    return work.run(directory, len(prompts), compute)


def _ends(
    judge: Judge, asked: Sequence[Conversation], texts: Sequence[Sequence[str]], how: str
) -> Ends:
    def prefer(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(B, m), (B, m) -> (B, m): P(first ≻ second)."""
        each = [prompt for prompt in asked for _ in range(first.shape[-1])]
        met = [
            [row[int(i)], row[int(j)]]
            for row, ones, others in zip(texts, first, second, strict=True)
            for i, j in zip(ones, others, strict=True)
        ]
        return judge(each, met)[:, 0, 1].reshape(first.shape)

    if how == "round_robin":
        return round_robin(judge(asked, texts))
    return tournament(prefer, len(texts[0]), (len(asked),))


def as_judged(prompt: Prompt) -> Conversation:
    """A prompt in the form that judges expect: its text, or the messages if there are several."""
    return prompt.text if len(prompt.messages) == 1 else list(prompt.messages)
