"""The exact solution of a run on an embedded model: of its game, or of the game between styles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from games import DataGame, PreferenceGame
from llm.config.schema import TrainConfig
from llm.data.examples import Prompt
from llm.embedded import HERE, PREFIX, grammar
from llm.embedded import game as embedded_game
from solvers import duality_gap, solve
from solvers.equilibrium import equilibrium
from solvers.loop import spin_target
from solvers.rules import UpdateRule

if TYPE_CHECKING:
    from llm.policy.log_probs import PromptResponse
    from llm.policy.model import Policy

ANSWER = "answer"  # the field of the embedded datasets that holds their answers


class ExactSolution(Protocol):
    """What is known exactly about the game of a run.

    rule       the update rule, whose target π* is
    logp_star  log π*; None where it is unknown or not unique
    """

    @property
    def rule(self) -> UpdateRule: ...

    @property
    def logp_star(self) -> np.ndarray | None: ...


def exact_solution(
    config: TrainConfig,
    rule: UpdateRule,
    policy: Policy,
    prompts: Sequence[Prompt],
    played: str | None,
) -> ExactSolution | None:
    """The exact solution for the embedded judges and datasets; None for all others.

    `played` is what the rule plays: "preference", "data", or None where that is known by given
    pairs only. The policy is π_0.
    """
    judged = config.judge.path if config.judge.kind == "embedded" else None
    own = played == "data" and config.data.answer == ANSWER
    answers = config.data.path.removeprefix(PREFIX) if own else None
    known = judged or (answers if config.judge.kind == "none" else None)
    if known in ("styles", "text"):
        return StyleGame.of(rule, answers == "text")
    if known == "game":
        preference = None if judged is None else embedded_game.preference()
        game = preference if played == "preference" else None
        if played == "data":
            game = DataGame(np.exp(embedded_game.data())) if answers == "game" else None
        return EnumeratedGame.of(rule, policy, prompts, config.sample.temperature, preference, game)
    return None


def target_description(rule: UpdateRule) -> str:
    """What the iterates of a rule approach, in words."""
    if rule.needs_data:
        own = 1.0 if rule.alpha is None else rule.alpha
        pull = "" if own == 1 else f", pulled towards μ by 1 − α = {1 - own:g}"
        return f"the distribution of the answers{pull}"
    regularizer, tau = rule.target
    if regularizer is None:
        return "the equilibrium of the game without a regularizer"
    return f"the equilibrium of the game at temperature τ = {tau:g} of {regularizer.name}"


@dataclass(frozen=True)
class EnumeratedGame:
    """The embedded game, all 125 responses of which are enumerated for each of its prompts.

    judged       the game of the judge; None without a judge
    played       what the rule plays: the judge's game or the distribution of the answers; None
                 where it is unknown
    completions  all responses to the first prompt, then all to the second
    logp_ref     (prompts, n): log μ
    start        (prompts, n): log π_0
    logp_star    (prompts, n): log π*; None where it is unknown or not unique
    """

    rule: UpdateRule
    judged: PreferenceGame | None
    played: PreferenceGame | DataGame | None
    completions: Sequence[PromptResponse]
    temperature: float
    logp_ref: np.ndarray
    start: np.ndarray
    logp_star: np.ndarray | None
    _iterates: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        rule: UpdateRule,
        policy: Policy,
        prompts: Sequence[Prompt],
        temperature: float,
        judged: PreferenceGame | None,
        played: PreferenceGame | DataGame | None,
    ) -> EnumeratedGame:
        """Solves the game. The policy is π_0."""
        from llm.policy.log_probs import PromptResponse

        asked = {prompt.text: prompt.token_ids for prompt in prompts}
        every = [
            PromptResponse(asked[prompt], response)
            for prompt in embedded_game.PROMPTS
            for response in embedded_game.responses()
        ]
        logp_ref, start = (_log_probs(policy, every, temperature, on) for on in (False, True))
        star = None
        if isinstance(played, DataGame):
            star = spin_target(rule, np.log(played.data), logp_ref)
        elif played is not None:
            found = equilibrium(played, *rule.target, logp_ref)
            star = found.logp if found.unique.all() else None
        return cls(rule, judged, played, every, temperature, logp_ref, start, star)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts."""
        return embedded_game.PROMPTS

    @property
    def texts(self) -> list[list[str]]:
        """prompts × n: the responses."""
        symbols = embedded_game.SYMBOLS
        every = ["".join(symbols[i] for i in ids) for ids in embedded_game.responses()]
        return [every for _ in self.prompts]

    @property
    def token_counts(self) -> np.ndarray:
        """(prompts, n): the length of each response."""
        return np.full_like(self.logp_ref, embedded_game.LENGTH)

    def log_probs(self, policy: Policy) -> np.ndarray:
        """(prompts, n): log π_θ of every response."""
        return _log_probs(policy, self.completions, self.temperature, adapter=True)

    def exact_iterate(self, t: int) -> np.ndarray | None:
        """(prompts, n): log-probabilities after t exact steps of the rule from π_0."""
        if self.played is None:
            return None
        if t not in self._iterates:
            mu = self.logp_ref
            found = solve(self.played, self.rule, steps=t, tol=0, start=self.start, reference=mu)
            self._iterates[t] = found.logp
        return self._iterates[t]

    def duality_gap(self, logp: np.ndarray) -> np.ndarray | None:
        """(prompts, n) -> (prompts,): duality gap of the rule's target game, in win rate."""
        if not isinstance(self.played, PreferenceGame):
            return None
        return duality_gap(self.played, logp, None, *self.rule.target, self.logp_ref)


def _log_probs(
    policy: Policy, every: Sequence[PromptResponse], temperature: float, adapter: bool
) -> np.ndarray:
    logp = policy.log_probs(every, batch_size=len(every), adapter=adapter, temperature=temperature)
    return logp.double().numpy().reshape(len(embedded_game.PROMPTS), -1)


@dataclass(frozen=True)
class StyleGame:
    """The game between the styles of the embedded text model: 4 × 4, with μ's shares as reference.

    The style judge looks at the style only. The equilibrium therefore keeps μ's distribution within
    each style, and its shares of the styles are the equilibrium of the 4 × 4 game (any
    f-divergence). The responses of the embedded dataset differ from μ only in
    their shares of the styles, too.

    logp_star  (4,): log of the shares in π*; None where the rule learns from other answers
    """

    rule: UpdateRule
    logp_star: np.ndarray | None
    names = (*grammar.STYLES, "other")

    @classmethod
    def of(cls, rule: UpdateRule, answers: bool = False) -> StyleGame:
        """Solves the game; `answers`: the rule learns from the answers of the embedded dataset."""
        from llm.embedded.judges import STYLE_GAME  # imports torch, as judges do

        logp_ref = np.log(_shares("training.json"))
        if not rule.needs_data:
            return cls(rule, equilibrium(STYLE_GAME, *rule.target, logp_ref).logp)
        if not answers:
            return cls(rule, None)
        with np.errstate(divide="ignore"):  # no answer is without a style
            logp_data = np.log([*_shares("answers.json"), 0.0])
        return cls(rule, spin_target(rule, logp_data, logp_ref))

    def styles(self, prompts: Sequence[str], texts: Sequence[Sequence[str]]) -> np.ndarray:
        """B prompts, B × K responses -> (B, K): the style of each, as an index of `names`."""
        from llm.embedded.judges import style_table

        return style_table(prompts, texts)


def _shares(name: str) -> list[float]:
    return json.loads((HERE / "text" / name).read_text())["shares"]
