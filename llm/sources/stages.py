"""The stages of an iteration in a run directory: sampling, log-probabilities, judging, selection.

Each stage is divided into chunks that are stored as soon as they are computed; a stage that is
stored is read.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from llm.config.schema import TrainConfig
from llm.data.examples import Prompt
from llm.data.prompts import PromptSet
from llm.judges.model import Judge
from llm.judges.preferences import JudgeError, check_preferences
from llm.judges.stored import comparisons, judge_responses, select_responses
from llm.policy.interrupts import check_interrupted
from llm.policy.iterates import Iterates
from llm.policy.memory import out_of_memory
from llm.policy.model import Policy
from llm.sampling.drift import stored_drift
from llm.sampling.engine import Engine, reports_log_probs
from llm.sampling.proposals import Proposals, engine_draw
from llm.sampling.responses import (
    Draw,
    Responses,
    add_log_probs,
    draw_responses,
    log_probs_under,
    sample_responses,
)
from llm.storage.chunks import Progress, Work, World
from llm.storage.directory import RunDirectory
from llm.storage.files import Record
from solvers.rules import UpdateRule

# Streams of random numbers, by their use: (seed, stream, iteration, chunk).
TRAINING, EVALUATION, REFERENCE, ORDER, SHARES, SAMPLER = range(6)

SAMPLING_SETTINGS = "sample.batch_size, sample.max_new_tokens, data.max_prompt_length"
JUDGING_SETTINGS = "judge.batch_size, judge.max_length, or set judge.device=cpu"
USED = ("tokens", "comparisons")  # what a budget counts


def opponent_shares(
    config: TrainConfig, rule: UpdateRule, u: int, prompts: int
) -> dict[int, np.ndarray]:
    """{iterate that the rule remembers: the samples b·K + k that iteration u draws from it}.

    A seeded random permutation assigns equal shares.
    """
    remembered, count = rule.remembered(u), prompts * config.samples_per_prompt
    order = np.random.default_rng((config.seed, SHARES, u)).permutation(count)
    iterate = np.array(remembered)[order % len(remembered)]
    return {s: np.flatnonzero(iterate == s) for s in sorted(set(remembered))}


@dataclass
class Stages:
    """What a run computes with its policy, engine and judge, stored in its directory.

    used        tokens and comparisons of the current iteration's training examples
    throughput  {what: [amount, seconds]} since the run was started
    """

    config: TrainConfig
    policy: Policy
    engine: Engine
    prompt_set: PromptSet
    judge: Judge | None
    judge_device: torch.device
    run: RunDirectory
    world: World
    progress: Progress
    used: dict[str, int] = field(default_factory=lambda: dict.fromkeys(USED, 0))
    throughput: defaultdict[str, list[float]] = field(
        default_factory=lambda: defaultdict(lambda: [0.0, 0.0])
    )

    @property
    def iterates(self) -> Iterates:
        """Where the weights of π_0, …, π_t are."""
        return Iterates(self.run, self.config.model.adapter)

    def prompts(self, t: int) -> list[Prompt]:
        """The prompts of iteration t."""
        return self.prompt_set.of_iteration(t, self.config.data.prompts_per_iteration)

    def rates(self) -> dict[str, float]:
        """{what: amount per second}."""
        return {what: n / seconds for what, (n, seconds) in self.throughput.items() if seconds > 0}

    # --- training examples ------------------------------------------------------------------------

    def sample_training(self, t: int, rule: UpdateRule) -> Responses:
        """K responses of `sample.distribution` at π_t per prompt, with log π_t and log μ."""
        directory, prompts = self.run.iteration(t) / "responses", self.prompts(t)
        k, key = self.config.samples_per_prompt, (self.config.seed, TRAINING, t)
        with self._proposal(t, t, rule) as draw, self._sampling(len(prompts)) as work:
            sampled = sample_responses(
                work,
                directory,
                draw,
                self.policy,
                prompts,
                k,
                self.config.sample,
                key,
                adapter=not self.is_reference(t),
            )
        self.used["tokens"] = int(sampled.lengths.sum())
        return sampled

    def draw_opponents(self, u: int, t: int, rule: UpdateRule) -> list[list[Record]]:
        """(B, K): draws for the prompts of iteration u, without log-probabilities.

        Each is drawn from one of the iterates that the rule remembers at step u, see
        `opponent_shares`. The policy is π_t before and after.
        """
        prompts, k, seed = self.prompts(u), self.config.samples_per_prompt, self.config.seed
        drawn: list[Record] = [{}] * (len(prompts) * k)
        for s, places in opponent_shares(self.config, rule, u, len(prompts)).items():
            with self._proposal(u, s, rule) as draw, self._sampling(len(places)) as work:
                directory = self.run.drawn(u, s)
                asked = [prompts[place // k] for place in places]
                rows = draw_responses(work, directory, draw, asked, (seed, TRAINING, u, s))
            for place, row in zip(places, rows, strict=True):
                drawn[place] = row
        if u == t:
            self.used["tokens"] = sum(len(row["tokens"][0]) for row in drawn)
        return [drawn[first : first + k] for first in range(0, len(drawn), k)]

    def add_log_probs(self, t: int, responses: Responses) -> Responses:
        """The responses of iteration t, with log π_t and log μ."""
        directory = self.run.iteration(t) / "responses"
        with self._scoring(len(responses.rows)) as work:
            return add_log_probs(
                work,
                directory,
                self.policy,
                responses,
                self.config.sample,
                adapter=not self.is_reference(t),
            )

    def is_reference(self, t: int) -> bool:
        """Whether π_t is μ, so that log π_t need not be computed.

        Not with a trained LM head: its float32 copy is rounded otherwise than the head of μ.
        """
        return self.iterates.adapter(t) is None and not self.config.lora.train_lm_head

    def log_probs_under(self, t: int, s: int, responses: Responses) -> np.ndarray:
        """(B, K): log π_s of the responses that iteration t trains on."""
        if s == t:
            return responses.logp
        adapter = self.iterates.adapter(s)
        if adapter is None:
            return responses.logp_ref
        directory = self.run.iteration(t) / "under" / f"{s:03d}"
        with self._scoring(len(responses.rows)) as work, self.policy.using(adapter):
            return log_probs_under(work, directory, self.policy, responses, self.config.sample)

    def judge_training(self, t: int, responses: Responses) -> np.ndarray:
        """(B, K, K): P(y_i ≻ y_j) of the responses of iteration t.

        Raises JudgeError for a judge that does not distinguish those of the first iteration.
        """
        directory = self.run.iteration(t) / "preferences"
        preference = self.preferences(directory, responses.prompts, responses.texts)
        if t == 0:
            self._check_judge(directory, preference, responses.texts)
        self.used["comparisons"] = len(preference) * comparisons(preference.shape[-1])
        return preference

    def select_training(self, t: int, responses: Responses, how: str) -> list[Record]:
        """The best and the worst response of each prompt, by `tournament` or `round_robin`."""
        directory = self.run.iteration(t) / "selection"
        with self._judging(len(responses.prompts)) as (work, judge):
            rows = select_responses(work, directory, judge, responses.prompts, responses.texts, how)
        self.used["comparisons"] = sum(row["comparisons"] for row in rows)
        return rows

    def training_drift(self, t: int) -> np.ndarray:
        """(N,): the engine's drift on each token that iteration t sampled for training."""
        if not reports_log_probs(self.engine):
            return np.zeros(0)
        return stored_drift(self.run.iteration(t) / "responses")

    # --- any responses ----------------------------------------------------------------------------

    def sample(
        self,
        directory: Path,
        prompts: Sequence[Prompt],
        samples: int,
        key: Sequence[int],
        adapter: Path | None,
        *,
        reference: bool = False,
        kl: bool = False,
    ) -> Responses:
        """Responses under an adapter (μ without), with their log-probabilities.

        `reference`: log μ stands for log π_t, too. `kl`: with KL(π_t‖μ) along each. The policy must
        be the one with that adapter.
        """
        with self._sampling(len(prompts)) as work:
            return sample_responses(
                work,
                directory,
                engine_draw(self.engine, adapter),
                self.policy,
                prompts,
                samples,
                self.config.sample,
                (self.config.seed, *key),
                adapter=not reference,
                kl=kl,
            )

    def preferences(
        self, directory: Path, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """B prompts, B × K texts -> (B, K, K): P(y_i ≻ y_j)."""
        with self._judging(len(prompts)) as (work, judge):
            return judge_responses(work, directory, judge, prompts, texts)

    # --- resources --------------------------------------------------------------------------------

    @contextmanager
    def _proposal(self, u: int, s: int, rule: UpdateRule) -> Iterator[Draw]:
        """How iteration u draws from π_s."""
        proposals = Proposals(self.config, self.policy, self.engine, self.world, self.progress)
        share = rule.share(rule.eta_at(u))
        directory = self.run.iteration(u) / "sampler" / f"{s:03d}"
        key = self.config.seed, SAMPLER, u, s
        adapter = self.iterates.adapter(s)
        with proposals.drawing(adapter, share, self.prompts(u), directory, key) as draw:
            yield draw

    def _check_judge(
        self, directory: Path, preference: np.ndarray, texts: Sequence[Sequence[str]]
    ) -> None:
        assert self.judge is not None
        try:
            check_preferences(preference, self.judge.name, texts)
        except JudgeError:
            self.world.barrier()
            if self.world.is_main:  # these tables are of no use to the next judge
                shutil.rmtree(directory)
            raise

    @contextmanager
    def _sampling(self, prompts: int) -> Iterator[Work]:
        """The engine frees its memory afterwards."""
        with out_of_memory("sampling", SAMPLING_SETTINGS), self._work("sample", prompts) as work:
            yield work
        self.engine.release()

    @contextmanager
    def _scoring(self, prompts: int) -> Iterator[Work]:
        with (
            out_of_memory("computing log-probabilities", SAMPLING_SETTINGS),
            self._work("log-probs", prompts) as work,
        ):
            yield work

    @contextmanager
    def _judging(self, prompts: int) -> Iterator[tuple[Work, Judge]]:
        """The judge on its device; it leaves a GPU afterwards."""
        assert self.judge is not None
        with out_of_memory("judging", JUDGING_SETTINGS):
            judge = self.judge.to(self.judge_device)
            with self._work("judge", prompts) as work:
                yield work, judge
        if self.judge_device.type != "cpu":
            self.judge.to("cpu")
            torch.cuda.empty_cache()

    @contextmanager
    def _work(self, name: str, prompts: int) -> Iterator[Work]:
        check_interrupted()
        own = -(-prompts // self.world.size)
        with self.progress.stage(name, own) as advance:
            yield Work(self.config.chunk_size, self.world, advance, self.count)

    def count(self, what: str, amount: float, seconds: float) -> None:
        """Adds to the throughput."""
        total = self.throughput[what]
        total[0] += amount
        total[1] += seconds
