"""The interface of a source: where the training examples of an iteration come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from games.errors import InputError
from llm.config.schema import TrainConfig
from llm.policy.iterates import MEMORY, required_iterates
from llm.sampling.responses import Responses
from llm.sources.stages import Stages
from solvers.fits import Fit
from solvers.plays import Plays, memory_fields
from solvers.rules import UpdateRule


class TooFewItems(RuntimeError):
    """An iteration has less than a batch to train on: resuming would fail the same way."""


@dataclass(frozen=True)
class Cost:
    """What an iteration takes for each of its prompts.

    sampled      responses that are generated
    comparisons  pairs of responses that are judged; the two orders of a pair are one comparison
    log_probs    responses whose log-probabilities are computed under π_t and μ
    trained      responses that are trained on
    groups       prompts that are trained on (more than one where iterations are pooled)
    """

    sampled: int
    comparisons: int
    log_probs: int
    trained: int
    groups: int = 1


@dataclass(frozen=True)
class Source(ABC):
    """Where the training examples of an iteration come from, and the game that they form.

    played       what the rule plays: the judge's preference, a data distribution, or None where
                 the game is known by its pairs only
    independent  whether the responses of a prompt are independent draws, so that an effective
                 temperature can be stated
    weighs       whether responses that were not drawn from π_t get importance weights
    pools        whether the responses of several iterations can be trained on together
    target       what the rule approaches instead of an equilibrium, in words; None: an equilibrium
    """

    config: TrainConfig
    rule: UpdateRule

    played: ClassVar[Literal["preference", "data"] | None] = "preference"
    independent: ClassVar[bool] = True
    weighs: ClassVar[bool] = True
    pools: ClassVar[bool] = False
    target: ClassVar[str | None] = None

    def check(self, fit: Fit) -> None:
        """Raises InputError where configuration, rule and fit do not go with this source."""
        config, rule = self.config, self.rule
        mixed = config.sample.distribution != "policy"
        if mixed and not (rule.mixes and 0 <= rule.share(rule.eta_at(0)) <= 1):
            raise InputError(
                f"sample.distribution={config.sample.distribution}: rule '{rule.name}' gives no "
                "share of μ between 0 and 1 to mix by; leave it at policy"
            )
        if config.sample.correct_drift:
            self._check_correction(fit)
        if config.pooled_iterations > 1 and not self.pools:
            raise InputError(
                f"pooled_iterations={config.pooled_iterations}: rule '{rule.name}' trains on "
                "responses of π_t only; leave it at 1, or take rule=spin or alpha_spin"
            )

    def _check_correction(self, fit: Fit) -> None:
        """Raises InputError where importance weights cannot correct the engine's drift."""
        sample = self.config.sample
        if sample.distribution != "policy":
            why = f"sample.distribution={sample.distribution} has weights of its own"
        elif sample.top_k or sample.top_p < 1:
            why = "with sample.top_k or sample.top_p some responses are never drawn"
        elif not (self.weighs and self.independent):
            why = f"training responses of rule '{self.rule.name}' are not weighted here"
        else:
            try:
                fit.check(self.rule, proposal=True)
            except InputError as error:
                raise InputError(f"sample.correct_drift=true: {error}") from None
            return
        raise InputError(f"sample.correct_drift=true: {why}; leave it out")

    @property
    @abstractmethod
    def group_size(self) -> int:
        """K: responses of a prompt in the game."""

    @property
    @abstractmethod
    def cost(self) -> Cost:
        """What a prompt takes. Raises InputError where the configuration makes it impossible."""

    @abstractmethod
    def responses(self, t: int, stages: Stages) -> Responses:
        """The responses that iteration t trains on, with log π_t and log μ. The policy is π_t."""

    @abstractmethod
    def preferences(self, t: int, responses: Responses, stages: Stages) -> np.ndarray | None:
        """(B, K, K): P(y_i ≻ y_j) of those responses; None where nothing is compared."""

    @property
    def description(self) -> str:
        """The source in a few words, for the first line of a run."""
        return f"K = {self.config.samples_per_prompt}"

    def is_consistent(self, fit: Fit) -> bool:
        """Whether the fit approaches the rule's step in expectation over these examples."""
        return fit.is_consistent(sampled=True)

    def pooled(self, t: int) -> Sequence[int]:
        """The iterations whose prompts iteration t trains on, newest first."""
        return [t]

    def required_iterates(self, t: int) -> list[int]:
        """The iterates under which iteration t needs log-probabilities of its responses."""
        return required_iterates(self.rule, t)

    def measure_fields(self, t: int, logp: Mapping[int, np.ndarray]) -> dict[str, np.ndarray]:
        """Fields of `Measure` for the rule's memory; logp[s] (B, K) is log π_s, where required."""
        fields = {}
        if "previous" in self.rule.needs:
            fields["logp_previous"] = logp[max(t - 1, 0)]
        if MEMORY & set(self.rule.needs):
            fields |= memory_fields([logp[s] for s in self.rule.remembered(t)])
        return fields

    def game(
        self,
        preference: np.ndarray | None,
        logp: np.ndarray,
        logp_ref: np.ndarray,
        **fields: np.ndarray,
    ) -> Plays:
        """(..., K, K), (..., K), (..., K): the finite game of the responses.

        `fields` are further fields of `Measure`.
        """
        return Plays.sampled(preference, logp, logp_ref, self.config.diagonal, **fields)

    def items_per_prompt(self, fit: Fit) -> int:
        """Rows that the fit makes of a prompt: its K responses, two of them, or pairs."""
        k = self.group_size
        names = ["logp_average", "logp_geometric", "logp_previous", "length"]
        if self.config.sample.distribution != "policy" or self.config.sample.correct_drift:
            names.append("logp_proposal")
        fields = {name: np.ones(k) for name in names}
        plays = self.game(self.example_preference, np.zeros(k), np.zeros(k), **fields)
        return fit.items(plays, self.rule(plays)).weight.shape[-1]

    @property
    def example_preference(self) -> np.ndarray | None:
        """(K, K): a table such as `preferences` gives for a prompt."""
        return np.full((self.group_size, self.group_size), 0.5)

    def check_batches(self, fit: Fit, prompts: int) -> None:
        """Raises InputError where that many prompts are less than a batch, or exceed a budget."""
        config, cost = self.config, self.cost
        items = prompts * self.items_per_prompt(fit)
        if items < config.train.batch_size:
            raise InputError(
                f"train.batch_size={config.train.batch_size}: an iteration has only {items} items; "
                "lower it, or take more prompts or responses"
            )
        budget = config.budget
        limits = (
            ("comparisons", budget.comparisons, cost.comparisons, ""),
            ("tokens", budget.tokens, cost.sampled, "at least "),  # a token per response
        )
        for name, limit, each, least in limits:
            if limit is not None and prompts * each > limit:
                raise InputError(
                    f"budget.{name}={limit}: an iteration takes {least}{prompts * each}; raise it, "
                    "or take fewer prompts or responses"
                )
