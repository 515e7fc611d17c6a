"""Rules side by side, each compared with its target equilibrium."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from games import MatrixGame, SymmetricGame
from games.errors import InputError

from .equilibrium import Equilibrium, equilibrium
from .loop import Solution, solve
from .rates import lipschitz, predicted_kl
from .rules import RULES, StepSize, UpdateRule, accepts, get_rule
from .theory import constant

Game = SymmetricGame | MatrixGame
Reference = np.ndarray | tuple[np.ndarray, np.ndarray] | None

DATA_NEEDED = "not applicable: it learns from a data distribution (solvers.solve with a DataGame)"
CONSTANT_STEP = (
    "with a constant step it is expected to stay O(η) away from the equilibrium, at a KL of O(η²)"
)


@dataclass(frozen=True)
class Run:
    """A rule's run on a game, its target equilibrium and its distance to it.

    rule         as it ran, with its step size resolved
    label        its name, and what distinguishes it from another run of the same rule
    equilibrium  that of the rule's target game
    kl           (T, ...) KL(π*‖π_t) where recorded, of both players in a zero-sum game; nan where
                 π* is one of many
    bound        (T,) a theorem's bound on the largest kl, or None
    note         what to expect of this run
    """

    rule: UpdateRule
    label: str
    solution: Solution
    equilibrium: Equilibrium
    kl: np.ndarray
    bound: np.ndarray | None
    note: str

    @property
    def target(self) -> str:
        """The target game."""
        regularizer, tau = self.rule.target
        return "unregularized" if regularizer is None else f"{regularizer.name}, τ={tau:g}"


@dataclass(frozen=True)
class Skipped:
    """A rule that does not apply to a game, with the reason."""

    rule: UpdateRule
    label: str
    note: str


def run(
    game: Game,
    rule: UpdateRule,
    *,
    reference: Reference = None,
    star: Equilibrium | None = None,
    **options,
) -> Run:
    """Play by one rule against its equilibrium `star`, which is computed unless given.

    `options` are those of `solve`. Raises InputError where the rule does not fit the game.
    """
    if rule.needs_data:
        raise InputError(DATA_NEEDED)
    if star is None:
        star = equilibrium(game, *rule.target, reference)
    pair = (star.logp, star.opponent_logp) if isinstance(game, MatrixGame) else star.logp
    solution = solve(game, rule, reference=reference, equilibrium=pair, **options)
    rule, label, note = solution.rule, rule.name, rule.note
    if rule.constant_step_bias and constant(solution.rule.eta):
        rule, label = replace(solution.rule, converges="neither"), f"{rule.name} (constant step)"
        note = CONSTANT_STEP
    assert solution.history.kl is not None
    kl = np.where(star.unique, solution.history.kl, np.nan)
    bound = _bound(game, solution, reference, float(np.max(kl[0])))
    return Run(rule, label, solution, star, kl, bound, note)


def compare(
    game: Game,
    names: Sequence[str] | None = None,
    *,
    regularizer: str | None = None,
    tau: float | None = None,
    eta: StepSize = None,
    reference: Reference = None,
    steps: int = 2000,
    tol: float | None = None,
    on_step: Callable[[str, int], None] | None = None,
) -> list[Run | Skipped]:
    """All rules, or those named, on one game; each gets the settings that it has.

    Nash-MD runs by its schedule and with a constant step, unless `eta` chooses. `on_step` gets the
    rule's name and the step. Raises InputError for settings that no rule could take.
    """
    settings = {"regularizer": regularizer, "tau": tau, "eta": eta}
    widest = get_rule("gmmd", **settings)
    named = [_settled(get_rule(name), settings, widest) for name in names or RULES]
    stars: dict[tuple, Equilibrium] = {}
    runs: list[Run | Skipped] = []
    for rule in [variant for each in named for variant in _variants(each, game)]:
        watch = None if on_step is None else partial(on_step, rule.name)
        try:
            if not rule.needs_data and rule.target not in stars:
                stars[rule.target] = equilibrium(game, *rule.target, reference)
            star = stars.get(rule.target)
            options = {"steps": steps, "tol": tol, "on_step": watch}
            runs.append(run(game, rule, reference=reference, star=star, **options))
        except InputError as error:
            runs.append(Skipped(rule, rule.name, str(error)))
    return runs


def _bound(game: Game, solution: Solution, reference: Reference, start: float) -> np.ndarray | None:
    """(T,): the theorem's bound on the KL where it was recorded; the weaker one of two players'."""
    if math.isnan(start):
        return None
    references = reference if isinstance(reference, tuple) else (solution.reference,)
    steps = solution.history.steps
    bounds = [predicted_kl(solution.rule, game, mu, start, steps) for mu in references]
    known = [bound for bound in bounds if bound is not None]
    return np.maximum.reduce(known) if len(known) == len(bounds) else None


def _settled(rule: UpdateRule, settings: dict, widest: UpdateRule) -> UpdateRule:
    """The rule with those of the settings that it has."""
    known = {}
    if rule.regularized:
        known["tau"] = settings["tau"]
        if accepts(rule, widest.regularizer):
            known["regularizer"] = settings["regularizer"]
    if rule.eta != math.inf and not rule.needs_data:
        known["eta"] = settings["eta"]
    return get_rule(rule, **known)


def _variants(rule: UpdateRule, game: Game) -> list[UpdateRule]:
    """Nash-MD by its schedule and with a constant step, every other rule as it is."""
    if not rule.constant_step_bias or constant(rule.eta) or rule.tau == 0:
        return [rule]
    # MMD's step by theory, where the share ητ of μ in the mixture leaves room for π_t.
    lip = lipschitz(game)
    eta = min(rule.tau / lip / lip if lip > 0 else math.inf, 0.5 / rule.tau)
    return [rule, replace(rule, eta=eta)] if eta >= sys.float_info.min else [rule]
