"""What is known exactly beside a run on an embedded model: its game, or that of its styles."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from games import DataGame, PreferenceGame
from llm.config.schema import TrainConfig
from llm.data.examples import Prompt
from llm.embedded import HERE, PREFIX, grammar
from llm.embedded import game as embedded_game
from llm.embedded.judges import STYLE_GAME, style_table
from llm.policy.log_probs import PromptResponse
from llm.policy.model import Policy
from llm.storage.files import Record
from solvers import duality_gap, solve
from solvers.arrays import against, dot
from solvers.equilibrium import equilibrium
from solvers.rules import UpdateRule
from solvers.solve import kl_divergence, spin_target

ANSWER = "answer"  # the field of the embedded answers


class Beside(Protocol):
    """What is measured exactly, in addition to or in place of samples."""

    enumerated: bool

    @property
    def logp_star(self) -> np.ndarray | None:
        """What the rule aims at, where that is known."""
        ...

    def measure(self, policy: Policy, t: int, rows: list[Record]) -> Record:
        """Metrics of π_t; `rows` are responses of it where it is not enumerated."""
        ...


def beside(
    config: TrainConfig,
    rule: UpdateRule,
    policy: Policy,
    prompts: list[Prompt],
    played_by_rule: str | None,
) -> Beside | None:
    """What is known of this run's game; None for anything but the embedded ones."""
    judged = config.judge.path if config.judge.kind == "embedded" else None
    own = played_by_rule == "data" and config.data.answer == ANSWER
    answers = config.data.path.removeprefix(PREFIX) if own else None
    known = judged or (answers if config.judge.kind == "none" else None)
    if known in ("styles", "text"):
        return StyleGame.of(rule, answers == "text")
    if known == "game":
        temperature = config.sample.temperature
        preference = None if judged is None else embedded_game.preference()
        played = preference if played_by_rule == "preference" else None
        if played_by_rule == "data":
            played = DataGame(np.exp(embedded_game.data())) if answers == "game" else None
        return EnumeratedGame.of(rule, policy, prompts, temperature, preference, played)
    return None


def aim(rule: UpdateRule) -> str:
    """What a rule's iterates are for, in words."""
    if rule.needs_data:
        own = 1.0 if rule.alpha is None else rule.alpha
        pull = "" if own == 1 else f", pulled towards μ by 1 − α = {1 - own:g}"
        return f"the distribution of the answers{pull}"
    regularizer, tau = rule.target
    if regularizer is None:
        return "the equilibrium of the game without a regulariser"
    return f"the equilibrium of the game at temperature τ = {tau:g} of {regularizer.name}"


@dataclass(frozen=True)
class EnumeratedGame:
    """All responses of the embedded game: π_t, π* and the exact iterates are known to the last.

    `judged` is the judge's game, `played` what the rule plays, where that is known: the same, or
    the distribution of the answers.
    """

    rule: UpdateRule
    judged: PreferenceGame | None
    played: PreferenceGame | DataGame | None
    completions: list[PromptResponse]
    temperature: float
    logp_ref: np.ndarray
    start: np.ndarray
    logp_star: np.ndarray | None  # None where it is not known, or one of several
    enumerated = True

    @classmethod
    def of(
        cls,
        rule: UpdateRule,
        policy: Policy,
        prompts: list[Prompt],
        temperature: float,
        judged: PreferenceGame | None,
        played: PreferenceGame | DataGame | None,
    ) -> EnumeratedGame:
        """The games, and what the rule aims at in what it plays. The policy is π_0."""
        asked = {prompt.text: prompt.token_ids for prompt in prompts}
        every = [
            PromptResponse(asked[p], r)
            for p in embedded_game.PROMPTS
            for r in embedded_game.responses()
        ]
        logp_ref, start = (_log_probs(policy, every, temperature, on) for on in (False, True))
        star = None
        if isinstance(played, DataGame):
            star = spin_target(rule, np.log(played.data), logp_ref)
        elif played is not None:
            found = equilibrium(played, *rule.target, logp_ref)
            star = found.logp if found.unique.all() else None
        return cls(rule, judged, played, every, temperature, logp_ref, start, star)

    def log_probs(self, policy: Policy) -> np.ndarray:
        """(prompts, n): log π_θ of every response."""
        return _log_probs(policy, self.completions, self.temperature, adapter=True)

    def exact_iterate(self, t: int) -> np.ndarray | None:
        """(prompts, n): the rule iterated t times from π_0, on its own."""
        if self.played is None:
            return None
        mu = self.logp_ref
        return solve(self.played, self.rule, steps=t, tol=0, start=self.start, reference=mu).logp

    def measure(self, policy: Policy, t: int, rows: list[Record]) -> Record:
        """Every metric that does not need text, exact, averaged over the prompts."""
        logp, exact = self.log_probs(policy), self.exact_iterate(t)
        measured = {
            "kl_to_reference": kl_divergence(logp, self.logp_ref),
            "entropy": -dot(np.exp(logp), logp),
        }
        if self.judged is not None:
            against_mu = against(self.judged.payoff, np.exp(self.logp_ref))
            measured["win_rate"] = dot(np.exp(logp), against_mu)
        if isinstance(self.played, PreferenceGame):
            aimed = (*self.rule.target, self.logp_ref)
            measured["duality_gap"] = duality_gap(self.played, logp, None, *aimed)
        if exact is not None:
            measured["kl_to_exact_iterate"] = kl_divergence(exact, logp)
        if self.logp_star is not None:
            measured["kl_to_equilibrium"] = kl_divergence(self.logp_star, logp)
            measured["exact_kl_to_equilibrium"] = kl_divergence(self.logp_star, exact)
        means = {name: float(np.mean(values)) for name, values in measured.items()}
        return means | {"length": float(embedded_game.LENGTH)} | _target(self)


def _log_probs(
    policy: Policy, every: list[PromptResponse], temperature: float, adapter: bool
) -> np.ndarray:
    logp = policy.log_probs(every, batch_size=len(every), adapter=adapter, temperature=temperature)
    return logp.double().numpy().reshape(len(embedded_game.PROMPTS), -1)


@dataclass(frozen=True)
class StyleGame:
    """The game between styles that the style judge leaves: a 4 × 4 matrix over μ's shares.

    The judge looks at the style alone, so the equilibrium has μ's words within each style, and the
    shares of the styles are those of the equilibrium of the small game (any f-divergence). The
    answers of the data, too, differ from μ in the shares of their styles.
    """

    rule: UpdateRule
    logp_star: np.ndarray | None  # None where the rule follows answers that are not the embedded
    enumerated = False

    @classmethod
    def of(cls, rule: UpdateRule, answers: bool = False) -> StyleGame:
        """What the rule aims at, over the shares of the shipped model."""
        logp_ref = np.log(_shares("training.json"))
        if not rule.needs_data:
            return cls(rule, equilibrium(STYLE_GAME, *rule.target, logp_ref).logp)
        if not answers:
            return cls(rule, None)
        with np.errstate(divide="ignore"):  # no answer is without a style
            logp_data = np.log([*_shares("answers.json"), 0.0])
        return cls(rule, spin_target(rule, logp_data, logp_ref))

    @property
    def names(self) -> tuple[str, ...]:
        """The styles, in order."""
        return (*grammar.STYLES, "other")

    def measure(self, policy: Policy, t: int, rows: list[Record]) -> Record:
        """The share of each style among the responses, beside that in equilibrium."""
        kinds = style_table([row["prompt"] for row in rows], [row["responses"] for row in rows])
        shares = np.bincount(kinds.ravel(), minlength=len(self.names)) / kinds.size
        measured: Record = {"styles": dict(zip(self.names, shares.tolist(), strict=True))}
        if self.logp_star is not None:
            star = np.exp(self.logp_star).tolist()
            measured["equilibrium_styles"] = dict(zip(self.names, star, strict=True))
        return measured | _target(self)


def _target(known: EnumeratedGame | StyleGame) -> Record:
    """Which π* is meant."""
    return {} if known.logp_star is None else {"target": aim(known.rule)}


def _shares(name: str) -> list[float]:
    return json.loads((HERE / "text" / name).read_text())["shares"]
