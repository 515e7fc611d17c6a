"""What is known exactly beside a run on an embedded model: its game, or that of its styles."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from games import PreferenceGame
from llm.config import TrainConfig
from llm.data import Prompt
from llm.embedded import HERE, game, grammar
from llm.embedded.judges import STYLE_GAME, style_table
from llm.policy import Completion, Policy
from llm.rundir import Row
from solvers import duality_gap, solve
from solvers.arrays import against, dot
from solvers.equilibrium import equilibrium
from solvers.rules import UpdateRule
from solvers.solve import kl_divergence


class Beside(Protocol):
    """What is measured exactly, in addition to or in place of samples."""

    enumerated: bool

    def measure(self, policy: Policy, t: int, rows: list[Row]) -> Row:
        """Metrics of π_t; `rows` are responses of it where it is not enumerated."""
        ...


def beside(
    config: TrainConfig, rule: UpdateRule, policy: Policy, prompts: list[Prompt]
) -> Beside | None:
    """What is known of this run's game; None for anything but the embedded ones."""
    if config.judge.kind != "embedded":
        return None
    if config.judge.path == "styles":
        return StyleGame.of(rule)
    if config.judge.path == "game":
        return EnumeratedGame.of(rule, policy, prompts, config.sample.temperature)
    return None


@dataclass(frozen=True)
class EnumeratedGame:
    """All responses of the embedded game: π_t, π* and the exact iterates are known to the last."""

    rule: UpdateRule
    game: PreferenceGame
    completions: list[Completion]
    temperature: float
    logp_ref: np.ndarray
    logp_star: np.ndarray | None  # None where the game has several equilibria
    enumerated = True

    @classmethod
    def of(
        cls, rule: UpdateRule, policy: Policy, prompts: list[Prompt], temperature: float
    ) -> EnumeratedGame:
        """The game and its equilibrium, regularised as the rule aims at."""
        asked = {prompt.text: prompt.token_ids for prompt in prompts}
        every = [Completion(asked[p], r) for p in game.PROMPTS for r in game.responses()]
        preference = game.preference()
        logp_ref = _log_probs(policy, every, temperature, adapter=False)
        star = equilibrium(preference, *rule.target, logp_ref)
        known = star.logp if star.unique.all() else None
        return cls(rule, preference, every, temperature, logp_ref, known)

    def log_probs(self, policy: Policy) -> np.ndarray:
        """(prompts, n): log π_θ of every response."""
        return _log_probs(policy, self.completions, self.temperature, adapter=True)

    def exact_iterate(self, t: int) -> np.ndarray:
        """(prompts, n): the rule iterated t times from μ, on its own."""
        return solve(self.game, self.rule, steps=t, tol=0, reference=self.logp_ref).logp

    def measure(self, policy: Policy, t: int, rows: list[Row]) -> Row:
        """Every metric that does not need text, exact, averaged over the prompts."""
        logp, exact = self.log_probs(policy), self.exact_iterate(t)
        against_mu = against(self.game.payoff, np.exp(self.logp_ref))
        measured = {
            "win_rate": dot(np.exp(logp), against_mu),
            "kl_to_reference": kl_divergence(logp, self.logp_ref),
            "entropy": -dot(np.exp(logp), logp),
            "kl_to_exact_iterate": kl_divergence(exact, logp),
            "duality_gap": duality_gap(
                self.game, logp, None, *self.rule.target, reference=self.logp_ref
            ),
        }
        if self.logp_star is not None:
            measured["kl_to_equilibrium"] = kl_divergence(self.logp_star, logp)
            measured["exact_kl_to_equilibrium"] = kl_divergence(self.logp_star, exact)
        means = {name: float(np.mean(values)) for name, values in measured.items()}
        return means | {"length": float(game.LENGTH)}


def _log_probs(
    policy: Policy, every: list[Completion], temperature: float, adapter: bool
) -> np.ndarray:
    logp = policy.score(every, batch_size=len(every), adapter=adapter, temperature=temperature)
    return logp.double().numpy().reshape(len(game.PROMPTS), -1)


@dataclass(frozen=True)
class StyleGame:
    """The game between styles that the style judge leaves: a 4 × 4 matrix over μ's shares.

    The judge looks at the style alone, so the equilibrium has μ's words within each style, and the
    shares of the styles are those of the equilibrium of the small game (any f-divergence).
    """

    logp_star: np.ndarray
    enumerated = False

    @classmethod
    def of(cls, rule: UpdateRule) -> StyleGame:
        """The equilibrium that the rule aims at, over the shares of the shipped model."""
        shares = json.loads((HERE / "text" / "training.json").read_text())["shares"]
        return cls(equilibrium(STYLE_GAME, *rule.target, np.log(shares)).logp)

    @property
    def names(self) -> tuple[str, ...]:
        """The styles, in order."""
        return (*grammar.STYLES, "other")

    def measure(self, policy: Policy, t: int, rows: list[Row]) -> Row:
        """The share of each style among the responses, beside that in equilibrium."""
        kinds = style_table([row["prompt"] for row in rows], [row["responses"] for row in rows])
        shares = np.bincount(kinds.ravel(), minlength=len(self.names)) / kinds.size
        star = np.exp(self.logp_star)
        return {
            "styles": dict(zip(self.names, shares.tolist(), strict=True)),
            "equilibrium_styles": dict(zip(self.names, star.tolist(), strict=True)),
        }
