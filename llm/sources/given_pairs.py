"""Given pairs: a chosen and a rejected answer per prompt, both from the dataset."""

from __future__ import annotations

import numpy as np

from games.errors import InputError
from llm.sampling.responses import Responses, with_answers
from llm.sources.base import Cost, Source
from llm.sources.stages import Stages
from solvers.fits import Fit, Pairs

CHOSEN = np.array([[0.5, 1.0], [0.0, 0.5]])  # the first answer was chosen, the second rejected


class GivenPairs(Source):
    """The answers in `data.answer` and `data.rejected`: nothing is generated or judged (DPO)."""

    played = None
    independent = False
    target = "the given pairs"

    def check(self, fit: Fit) -> None:
        """See `Source.check`."""
        config = self.config
        if config.data.answer is None:
            raise InputError(
                "data.answer: missing; name the field that the rejected answers lose to"
            )
        if not isinstance(fit, Pairs):
            raise InputError(
                f"fit={fit.name}: takes responses of the policy itself; for given pairs "
                "(data.rejected) take logistic or pairwise"
            )
        if fit.signal == "win_rate":
            raise InputError(
                "fit_options.signal: given pairs (data.rejected) have a winner but no win rates; "
                "set it to winner"
            )
        if config.selection is not None:
            raise InputError("selection: leave it out; the data say what wins")
        if config.sample.distribution != "policy":
            raise InputError(
                f"sample.distribution={config.sample.distribution}: nothing is sampled for given "
                "pairs (data.rejected); leave it at policy"
            )
        super().check(fit)

    @property
    def description(self) -> str:
        """The source in a few words."""
        return "given pairs"

    @property
    def group_size(self) -> int:
        """The chosen and the rejected answer."""
        return 2

    @property
    def cost(self) -> Cost:
        """Log-probabilities of the two answers."""
        return Cost(sampled=0, comparisons=0, log_probs=2, trained=2)

    def responses(self, t: int, stages: Stages) -> Responses:
        """The chosen and the rejected response of each prompt."""
        prompts = stages.prompts(t)
        return stages.add_log_probs(t, with_answers(prompts, [[] for _ in prompts]))

    def preferences(self, t: int, responses: Responses, stages: Stages) -> np.ndarray | None:
        """The chosen answer wins."""
        return np.broadcast_to(CHOSEN, (len(responses.rows), *CHOSEN.shape))

    @property
    def example_preference(self) -> np.ndarray | None:
        """(2, 2)."""
        return CHOSEN
