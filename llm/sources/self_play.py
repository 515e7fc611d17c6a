"""Self-play: K responses of π_t per prompt, all pairs of them judged."""

from __future__ import annotations

import numpy as np

from games.errors import InputError
from llm.judges.stored import comparisons
from llm.sampling.responses import Responses
from llm.sources.base import Cost, Source
from llm.sources.stages import Stages
from solvers.fits import Fit


class SelfPlay(Source):
    """y_1, …, y_K ∼ π_t for each prompt, and P(y_i ≻ y_j) of every pair (RSPO, Algorithm 1)."""

    def check(self, fit: Fit) -> None:
        """See `Source.check`."""
        config, rule = self.config, self.rule
        if config.samples_per_prompt < 2:
            raise InputError(
                f"samples_per_prompt={config.samples_per_prompt}: rule '{rule.name}' compares "
                "responses; give at least 2"
            )
        if config.judge.kind == "none":
            raise InputError(
                f"judge.kind=none: rule '{rule.name}' needs a judge, or pairs of answers "
                "(data.answer and data.rejected)"
            )
        super().check(fit)

    @property
    def group_size(self) -> int:
        """K."""
        return self.config.samples_per_prompt

    @property
    def cost(self) -> Cost:
        """K responses and all K(K − 1)/2 pairs."""
        k = self.config.samples_per_prompt
        return Cost(sampled=k, comparisons=comparisons(k), log_probs=k, trained=k)

    def responses(self, t: int, stages: Stages) -> Responses:
        """K draws from π_t, or from `sample.distribution`."""
        return stages.sample_training(t, self.rule)

    def preferences(self, t: int, responses: Responses, stages: Stages) -> np.ndarray | None:
        """The judge's table of every prompt."""
        return stages.judge_training(t, responses)
