"""Responses and their log-probabilities, computed in chunks of prompts and stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm.config.schema import SampleConfig
from llm.data.examples import Prompt
from llm.policy.log_probs import PromptResponse
from llm.policy.model import Policy
from llm.sampling import drift
from llm.sampling.engine import Response
from llm.storage.chunks import Chunk, Work
from llm.storage.files import Record

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Responses:
    """B prompts with K responses each, as they are stored: one record per prompt."""

    prompts: Sequence[Prompt]
    rows: Sequence[Record]

    @property
    def texts(self) -> list[list[str]]:
        """B × K."""
        return [row["responses"] for row in self.rows]

    @property
    def completions(self) -> list[list[PromptResponse]]:
        """B × K, as token ids."""
        return [
            [PromptResponse(prompt.token_ids, tokens) for tokens in row["tokens"]]
            for prompt, row in zip(self.prompts, self.rows, strict=True)
        ]

    @property
    def logp(self) -> np.ndarray:
        """(B, K): log π_t as recorded."""
        return self.field("logp")

    @property
    def logp_ref(self) -> np.ndarray:
        """(B, K): log μ as recorded."""
        return self.field("logp_ref")

    @property
    def kl(self) -> np.ndarray:
        """(B, K): KL(π_t‖μ) along the responses, or log π_t − log μ where it is not recorded."""
        if all("kl" in row for row in self.rows):
            return self.field("kl")
        return self.logp - self.logp_ref

    @property
    def lengths(self) -> np.ndarray:
        """(B, K): number of tokens, end-of-sequence token included."""
        return np.array([[len(tokens) for tokens in row["tokens"]] for row in self.rows])

    @property
    def proposal(self) -> dict[str, np.ndarray]:
        """log of the sampling distribution, as a field of `Measure`; empty where that is π_t."""
        name = "logp_proposal"
        return {name: self.field(name)} if name in self.rows[0] else {}

    def pick(self, prompts: Iterable[int], chosen: Sequence[Sequence[int]]) -> Responses:
        """The chosen responses (indices among the K of each prompt) of these prompts."""
        rows = [
            {
                name: [value[k] for k in chosen[b]] if isinstance(value, list) else value
                for name, value in self.rows[b].items()
            }
            for b in prompts
        ]
        return Responses([self.prompts[b] for b in prompts], rows)

    def field(self, name: str) -> np.ndarray:
        """(B, ...): a recorded number, or numbers, of each prompt."""
        return np.array([row[name] for row in self.rows], dtype=np.float64)

    def with_field(self, name: str, values: Sequence[object]) -> Responses:
        """The same with one more value recorded for each of the B prompts."""
        pairs = zip(self.rows, values, strict=True)
        return Responses(self.prompts, [row | {name: value} for row, value in pairs])


# B × K: the log-probabilities of each response's tokens.
TokenLogProbs = Sequence[Sequence[Sequence[float]]]

# (token ids of B prompts, K, key) -> B × K responses, and (B, K) log-probabilities of the
# distribution that they were drawn from where that is not the policy.
Draw = Callable[
    [Sequence[Sequence[int]], int, Sequence[int]],
    tuple[list[list[Response]], "torch.Tensor | None"],
]


def sample_responses(
    work: Work,
    directory: Path,
    draw: Draw,
    policy: Policy,
    prompts: Sequence[Prompt],
    samples: int,
    settings: SampleConfig,
    key: Sequence[int],
    *,
    adapter: bool = True,
    kl: bool = False,
) -> Responses:
    """K responses per prompt, with log π_t (log μ with `adapter=False`) and log μ of each.

    `kl`: also the KL divergence from μ along each, see `Policy.log_probs_and_kl`.
    """

    def compute(chunk: Chunk) -> list[Record]:
        asked = prompts[chunk.slice]
        rows, engine = _drawn(work, draw, asked, samples, (*key, chunk.index))
        if kl and engine is None:
            return _with_kl(work, policy, asked, rows, settings)
        return _with_log_probs(work, policy, asked, rows, settings, adapter, engine)

    return Responses(prompts, work.run(directory, len(prompts), compute))


def draw_responses(
    work: Work, directory: Path, draw: Draw, prompts: Sequence[Prompt], key: Sequence[int]
) -> list[Record]:
    """One response per prompt, without log-probabilities."""

    def compute(chunk: Chunk) -> list[Record]:
        return _drawn(work, draw, prompts[chunk.slice], 1, (*key, chunk.index))[0]

    return work.run(directory, len(prompts), compute)


def with_answers(prompts: Sequence[Prompt], drawn: Sequence[Sequence[Record]]) -> Responses:
    """Each prompt's dataset answers, followed by its drawn responses; without log-probabilities."""
    rows: list[Record] = [
        {
            "prompt": prompt.text,
            "responses": [*prompt.answer_texts, *(row["responses"][0] for row in own)],
            "tokens": [*map(list, prompt.answers), *(row["tokens"][0] for row in own)],
        }
        for prompt, own in zip(prompts, drawn, strict=True)
    ]
    return Responses(prompts, rows)


def add_log_probs(
    work: Work,
    directory: Path,
    policy: Policy,
    responses: Responses,
    settings: SampleConfig,
    *,
    adapter: bool = True,
) -> Responses:
    """The responses, with log π_t (log μ with `adapter=False`) and log μ of each."""

    def compute(chunk: Chunk) -> list[Record]:
        asked, rows = responses.prompts[chunk.slice], responses.rows[chunk.slice]
        return _with_log_probs(work, policy, asked, rows, settings, adapter)

    return Responses(responses.prompts, work.run(directory, len(responses.rows), compute))


def log_probs_under(
    work: Work,
    directory: Path,
    policy: Policy,
    responses: Responses,
    settings: SampleConfig,
) -> np.ndarray:
    """(B, K): log-probabilities under the policy as it is now (a past iterate)."""

    def compute(chunk: Chunk) -> list[Record]:
        part = Responses(responses.prompts[chunk.slice], responses.rows[chunk.slice])
        values, _ = _log_probs(work, policy, part, settings, True)
        return [{"logp": row} for row in values]

    rows = work.run(directory, len(responses.rows), compute)
    return np.array([row["logp"] for row in rows], dtype=np.float64)


def _drawn(
    work: Work, draw: Draw, asked: Sequence[Prompt], samples: int, key: Sequence[int]
) -> tuple[list[Record], TokenLogProbs | None]:
    """A row for each prompt, and the engine's own log-probabilities where it reports them."""
    began = time.perf_counter()
    drawn, proposal = draw([prompt.token_ids for prompt in asked], samples, key)
    rows: list[Record] = [
        {
            "prompt": prompt.text,
            "responses": [response.text for response in row],
            "tokens": [list(response.token_ids) for response in row],
        }
        for prompt, row in zip(asked, drawn, strict=True)
    ]
    engine = [[response.token_log_probs or () for response in row] for row in drawn]
    reported = all(r.token_log_probs is not None for responses in drawn for r in responses)
    if reported:
        for row, own in zip(rows, engine, strict=True):
            row["logp_engine"] = [sum(each) for each in own]
    if proposal is not None:
        pairs = zip(rows, proposal.tolist(), strict=True)
        rows = [row | {"logp_proposal": values} for row, values in pairs]
    tokens = int(Responses(asked, rows).lengths.sum())
    work.count("tokens sampled", tokens, time.perf_counter() - began)
    return rows, engine if reported else None


def _with_log_probs(
    work: Work,
    policy: Policy,
    asked: Sequence[Prompt],
    rows: Sequence[Record],
    settings: SampleConfig,
    adapter: bool = True,
    engine: TokenLogProbs | None = None,
) -> list[Record]:
    """The rows with log π_t and log μ; with the engine's own log-probabilities, with their drift.

    The policy is what sampled them: π_t, or μ with `adapter=False`.
    """
    part, drifts = Responses(asked, rows), engine is not None
    reference, tokens = _log_probs(work, policy, part, settings, False, drifts and not adapter)
    own = reference
    if adapter:
        own, tokens = _log_probs(work, policy, part, settings, True, drifts)
    scored = [
        row | {"logp": logp, "logp_ref": logp_ref}
        for row, logp, logp_ref in zip(rows, own, reference, strict=True)
    ]
    if engine is None or tokens is None:
        return scored
    return [
        row | {drift.FIELD: drift.differences(theirs, ours)}
        for row, theirs, ours in zip(scored, engine, tokens, strict=True)
    ]


def _with_kl(
    work: Work,
    policy: Policy,
    asked: Sequence[Prompt],
    rows: Sequence[Record],
    settings: SampleConfig,
) -> list[Record]:
    part, began = Responses(asked, rows), time.perf_counter()
    flat = [response for row in part.completions for response in row]
    found = policy.log_probs_and_kl(
        flat, batch_size=settings.batch_size, temperature=settings.temperature
    )
    work.count("tokens scored", 2 * sum(map(len, flat)), time.perf_counter() - began)
    columns = found.view(len(rows), -1, 3).permute(2, 0, 1).tolist()
    return [
        row | {"logp": logp, "logp_ref": logp_ref, "kl": kl}
        for row, logp, logp_ref, kl in zip(rows, *columns, strict=True)
    ]


def _log_probs(
    work: Work,
    policy: Policy,
    responses: Responses,
    settings: SampleConfig,
    adapter: bool,
    by_token: bool = False,
) -> tuple[list[list[float]], TokenLogProbs | None]:
    """B × K, and those of the tokens where they are asked for."""
    began = time.perf_counter()
    flat = [response for row in responses.completions for response in row]
    how = {"batch_size": settings.batch_size, "adapter": adapter}
    tokens = None
    if by_token:
        logp, each = policy.token_log_probs(flat, **how, temperature=settings.temperature)
        k = len(flat) // len(responses.rows)
        tokens = [each[first : first + k] for first in range(0, len(flat), k)]
    else:
        logp = policy.log_probs(flat, **how, temperature=settings.temperature)
    work.count("tokens scored", sum(map(len, flat)), time.perf_counter() - began)
    return logp.view(len(responses.rows), -1).tolist(), tokens
