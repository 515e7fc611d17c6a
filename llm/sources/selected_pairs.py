"""Selected pairs: of K responses of π_t only the best and the worst are trained on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from games.errors import InputError
from llm.sampling.responses import Responses
from llm.sources.base import Cost, TooFewItems
from llm.sources.self_play import SelfPlay
from llm.sources.stages import Stages
from solvers.fits import Fit
from solvers.tournament import Ends, round_robin, tournament_of

SELECTIONS: dict[str, Callable[[np.ndarray], Ends]] = {
    "tournament": tournament_of,
    "round_robin": round_robin,
}


class SelectedPairs(SelfPlay):
    """The best and the worst of K responses, by a knock-out tournament (INPO) or by all pairs.

    Prompts whose best response does not beat their worst are left out.
    """

    independent = False

    def check(self, fit: Fit) -> None:
        """See `Source.check`."""
        try:
            _ = self.cost
        except InputError as error:
            k = self.config.samples_per_prompt
            raise InputError(f"samples_per_prompt={k}: {error}") from None
        super().check(fit)

    @property
    def group_size(self) -> int:
        """The best and the worst."""
        return 2

    @property
    def cost(self) -> Cost:
        """K responses, and the pairs that the selection asks for."""
        k = self.config.samples_per_prompt
        asked = SELECTIONS[str(self.config.selection)](np.full((k, k), 0.5)).comparisons
        return Cost(sampled=k, comparisons=asked, log_probs=k, trained=2)

    def is_consistent(self, fit: Fit) -> bool:
        """A selection is biased."""
        return False

    def responses(self, t: int, stages: Stages) -> Responses:
        """Best and worst of the K, where the best beats the worst.

        Raises TooFewItems where that is so for no prompt.
        """
        sampled = super().responses(t, stages)
        rows = stages.select_training(t, sampled, str(self.config.selection))
        passed = [b for b, row in enumerate(rows) if row["passed"]]
        if len(passed) < len(rows):
            stages.progress.say(
                f"t = {t}: the best response does not beat the worst for "
                f"{len(rows) - len(passed)} of {len(rows)} prompts, which are left out"
            )
        if not passed:
            raise TooFewItems(
                f"judge {self.config.judge.path}: the best response beats the worst for no prompt "
                f"of iteration {t}; check that the judge distinguishes responses"
            )
        chosen = sampled.pick(passed, [(row["best"], row["worst"]) for row in rows])
        return chosen.with_field("preference", [rows[b]["preference"] for b in passed])

    def preferences(self, t: int, responses: Responses, stages: Stages) -> np.ndarray | None:
        """(B, 2, 2): P(best ≻ worst), as the selection asked the judge."""
        p = responses.field("preference")
        table = np.stack([np.full_like(p, 0.5), p, 1 - p, np.full_like(p, 0.5)], axis=-1)
        return table.reshape(-1, 2, 2)

    @property
    def example_preference(self) -> np.ndarray | None:
        """(2, 2)."""
        return np.array([[0.5, 1.0], [0.0, 0.5]])
