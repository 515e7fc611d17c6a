"""What an iteration does besides training: sample and score, judge, measure. Stored by chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm import metrics
from llm.chunks import Chunk, World, chunks, run_stage
from llm.config import SampleConfig
from llm.data import Prompt
from llm.judges import Judge
from llm.policy import Completion, Policy
from llm.rundir import Row
from llm.sampling import sample


@dataclass(frozen=True)
class Work:
    """How a stage is cut and dealt: prompts per chunk, processes, and who hears of what is done.

    advance(prompts) is called after each chunk, count(what, amount, seconds) after each part of it.
    """

    chunk_size: int
    world: World = World()  # noqa: RUF009 - frozen
    advance: Callable[[int], object] = lambda prompts: None
    count: Callable[[str, int, float], object] = lambda what, amount, seconds: None

    def run(
        self, directory: Path, prompts: int, compute: Callable[[Chunk], Sequence[Row]]
    ) -> list[Row]:
        """The rows of that many prompts, in order."""
        return run_stage(
            directory,
            chunks(prompts, self.chunk_size),
            compute,
            self.world,
            lambda chunk: self.advance(chunk.stop - chunk.start),
        )


@dataclass(frozen=True)
class Responses:
    """B prompts with K responses each, as they are stored: a row per prompt."""

    prompts: Sequence[Prompt]
    rows: Sequence[Row]

    @property
    def texts(self) -> list[list[str]]:
        """B × K."""
        return [row["responses"] for row in self.rows]

    @property
    def completions(self) -> list[list[Completion]]:
        """B × K, as token ids."""
        return [
            [Completion(prompt.token_ids, tokens) for tokens in row["tokens"]]
            for prompt, row in zip(self.prompts, self.rows, strict=True)
        ]

    @property
    def logp(self) -> np.ndarray:
        """(B, K): log π_t as recorded."""
        return np.array([row["logp"] for row in self.rows], dtype=np.float64)

    @property
    def logp_ref(self) -> np.ndarray:
        """(B, K): log μ as recorded."""
        return np.array([row["logp_ref"] for row in self.rows], dtype=np.float64)

    @property
    def lengths(self) -> np.ndarray:
        """(B, K): tokens, with EOS."""
        return np.array([[len(tokens) for tokens in row["tokens"]] for row in self.rows])


def sample_responses(
    work: Work,
    directory: Path,
    policy: Policy,
    prompts: Sequence[Prompt],
    samples: int,
    settings: SampleConfig,
    key: Sequence[int],
    *,
    adapter: bool = True,
) -> Responses:
    """K responses of π_t (of μ: no adapter) per prompt, with log π_t and log μ of each."""

    def compute(chunk: Chunk) -> list[Row]:
        asked = prompts[chunk.slice]
        began = time.perf_counter()
        sampled = sample(
            policy,
            [prompt.token_ids for prompt in asked],
            samples,
            settings,
            key=(*key, chunk.index),
            adapter=adapter,
        )
        rows: list[Row] = [
            {
                "prompt": prompt.text,
                "responses": [response.text for response in row],
                "tokens": [list(response.token_ids) for response in row],
            }
            for prompt, row in zip(asked, sampled, strict=True)
        ]
        drawn = Responses(asked, rows)
        work.count("tokens sampled", int(drawn.lengths.sum()), time.perf_counter() - began)

        began = time.perf_counter()
        flat = [completion for row in drawn.completions for completion in row]
        for name, on in (("logp", adapter), ("logp_ref", False)):
            scored = policy.score(
                flat,
                batch_size=settings.batch_size,
                adapter=on,
                temperature=settings.temperature,
            )
            for row, values in zip(rows, scored.view(-1, samples).tolist(), strict=True):
                row[name] = values
        tokens = 2 * sum(len(completion) for completion in flat)
        work.count("tokens scored", tokens, time.perf_counter() - began)
        return rows

    return Responses(prompts, work.run(directory, len(prompts), compute))


def judge_responses(
    work: Work,
    directory: Path,
    judge: Judge,
    prompts: Sequence[Prompt],
    texts: Sequence[Sequence[str]],
) -> np.ndarray:
    """B prompts, B × K responses -> (B, K, K) preferences."""

    def compute(chunk: Chunk) -> list[Row]:
        began = time.perf_counter()
        asked = [as_judged(prompt) for prompt in prompts[chunk.slice]]
        tables = judge(asked, texts[chunk.slice])
        pairs = len(tables) * tables.shape[-1] * (tables.shape[-1] - 1)
        work.count("pairs judged", pairs, time.perf_counter() - began)
        return [{"preference": table.tolist()} for table in tables]

    rows = work.run(directory, len(prompts), compute)
    return np.array([row["preference"] for row in rows])


def as_judged(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt as judges take it: a text, or the messages of a longer conversation."""
    return prompt.text if len(prompt.messages) == 1 else list(prompt.messages)


def evaluate(
    work: Work, directory: Path, judge: Judge, own: Responses, reference: Responses
) -> Row:
    """Metrics of π_t from its responses and those of μ to the same prompts."""
    both = [ours + theirs for ours, theirs in zip(own.texts, reference.texts, strict=True)]
    preference = judge_responses(work, directory, judge, own.prompts, both)
    k = own.logp.shape[1]
    return {
        "win_rate": metrics.win_rate(preference[:, :k, k:]).mean,
        "kl_to_reference": metrics.kl(own.logp, own.logp_ref).mean,
        "entropy": metrics.entropy(own.logp).mean,
        "length": float(own.lengths.mean()),
        "self_bleu": float(np.mean([metrics.self_bleu(texts) for texts in own.texts])),
    }
