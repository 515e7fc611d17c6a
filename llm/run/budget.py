"""Budgets: what training examples have used up, and whether another iteration fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from games.errors import InputError
from llm.config.schema import BudgetConfig
from llm.sources.stages import USED
from llm.storage.directory import RunDirectory
from llm.storage.files import DAMAGED, read_json, write_text


@dataclass(frozen=True)
class Budget:
    """Limits of a run, and the usage that each finished iteration has stored with its adapter."""

    limits: BudgetConfig
    run: RunDirectory

    def record(self, t: int, used: Mapping[str, int]) -> None:
        """Stores what iteration t has used."""
        write_text(self.run.iteration(t) / "used.json", json.dumps(used) + "\n", hashed=True)

    def used_before(self, t: int) -> dict[str, int]:
        """Tokens sampled and pairs compared for training in iterations 0, …, t − 1."""
        used = [self._used_in(u) for u in range(t)]
        return {what: sum(each.get(what, 0) for each in used) for what in USED}

    def _used_in(self, t: int) -> dict[str, int]:
        path = self.run.iteration(t) / "used.json"
        used = read_json(path, {})
        if not isinstance(used, dict) or not all(isinstance(n, int) for n in used.values()):
            raise InputError(f"{path}: {DAMAGED}")
        return used

    def exceeded(self, t: int) -> str | None:
        """Why iteration t is not started: one that uses as much as the last would exceed a limit.

        Depends on stored usage only, so that a resumed run decides the same. None where it fits.
        """
        if t == 0:
            return None
        so_far, before = self.used_before(t), self.used_before(t - 1)
        for what in USED:
            limit, next_total = getattr(self.limits, what), 2 * so_far[what] - before[what]
            if limit is not None and next_total > limit:
                return (
                    f"budget.{what}={limit}: {so_far[what]} used after {t} iterations; another "
                    f"iteration would use about {next_total}, so the run stops here"
                )
        return None
