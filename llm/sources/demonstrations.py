"""Demonstrations: dataset responses, to be distinguished from the policy's own samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from games.errors import InputError
from llm.sampling.responses import Responses, with_answers
from llm.sources.base import Cost, Source
from llm.sources.stages import Stages
from solvers.fits import Fit
from solvers.plays import Plays


class Demonstrations(Source):
    """A dataset response, followed by K draws of the opponent's past iterates (SPIN, α-SPIN)."""

    played = "data"
    weighs = False
    pools = True
    target = "the answers"

    def check(self, fit: Fit) -> None:
        """See `Source.check`."""
        config, rule = self.config, self.rule
        if config.data.answer is None:
            raise InputError(
                f"data.answer: missing; rule '{rule.name}' needs the field that holds the answers"
            )
        if config.data.rejected is not None:
            raise InputError(
                f"data.rejected: rule '{rule.name}' samples what loses to the answers; leave it "
                "out, or take rule=dpo"
            )
        if config.selection is not None:
            raise InputError("selection: leave it out; the data say what wins")
        super().check(fit)

    @property
    def group_size(self) -> int:
        """The answer and the K draws."""
        return self.config.samples_per_prompt + 1

    @property
    def cost(self) -> Cost:
        """K draws, and the answers and draws of all pooled iterations."""
        config, k = self.config, self.config.samples_per_prompt
        pooled = min(config.pooled_iterations, config.iterations)
        answered = pooled * (k + 1)
        return Cost(sampled=k, comparisons=0, log_probs=answered, trained=answered, groups=pooled)

    def is_consistent(self, fit: Fit) -> bool:
        """The logistic fit of these pairs is the rule's own."""
        return True

    def responses(self, t: int, stages: Stages) -> Responses:
        """The answers and draws of the last `pooled_iterations` iterations."""
        pooled = self.pooled(t)
        drawn = [row for u in pooled for row in stages.draw_opponents(u, t, self.rule)]
        prompts = [prompt for u in pooled for prompt in stages.prompts(u)]
        return stages.add_log_probs(t, with_answers(prompts, drawn))

    def preferences(self, t: int, responses: Responses, stages: Stages) -> np.ndarray | None:
        """Nothing is compared."""
        return None

    @property
    def example_preference(self) -> np.ndarray | None:
        """None, as `preferences`."""
        return None

    def pooled(self, t: int) -> Sequence[int]:
        """The last `pooled_iterations` iterations."""
        return range(t, max(t - self.config.pooled_iterations, -1), -1)

    def required_iterates(self, t: int) -> list[int]:
        """Only the magnet: the opponent is known by its samples."""
        return sorted({self.rule.magnet(t)} - {0})

    def measure_fields(self, t: int, logp: Mapping[int, np.ndarray]) -> dict[str, np.ndarray]:
        """None: `game` knows the opponent by its samples."""
        return {}

    def game(
        self,
        preference: np.ndarray | None,
        logp: np.ndarray,
        logp_ref: np.ndarray,
        **fields: np.ndarray,
    ) -> Plays:
        """The first response is from the dataset, the others are the opponent's."""
        return Plays.with_data(logp, logp_ref, data=1)
