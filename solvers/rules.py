"""Update rules: opponent × anchor × direction × baseline × regularizer × step size.

`rule(plays, t) -> Update` gives the target of step t. `steps` moves a tabular policy to it, `fits`
a parametric one. A named rule is one expression in `RULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from games.errors import InputError
from games.lookup import find, suggestion

from . import theory
from .arrays import Array, dot, logsumexp
from .bradley_terry import bradley_terry_scores
from .divergences import Divergence, entropy, parse, reverse_kl
from .kernels import Kernel
from .plays import Plays
from .steps import step
from .theory import Schedule, Theory
from .update import Update

DEFAULT_TAU = 0.1


# Opponents: (plays, rule, eta) -> weights (..., m).


def current_opponent(plays: Plays, rule: UpdateRule, eta: float) -> Array:
    """π_t."""
    return plays.other.weights


def mixture_opponent(plays: Plays, rule: UpdateRule, eta: float) -> Array:
    """π_t^μ ∝ π_t^(1−share) μ^share (Nash-MD, IPO-MD)."""
    return plays.other.weights_of(plays.other.mixture(rule.share(eta)))


def average_opponent(plays: Plays, rule: UpdateRule, eta: float) -> Array:
    """The mean of the remembered policies (fictitious play, α-SPIN, MNPO)."""
    return plays.other.weights_of(_known(plays.other.logp_average, "average"))


def optimistic_opponent(plays: Plays, rule: UpdateRule, eta: float) -> Array:
    """2π_t − π_{t−1}, a linear extrapolation to π_{t+1}. Weights may be negative."""
    previous = plays.other.weights_of(_known(plays.other.logp_previous, "previous"))
    return 2 * plays.other.weights - previous


def half_step_opponent(plays: Plays, rule: UpdateRule, eta: float) -> Array:
    """π_{t+½}: the step of the rule against π_t (extragradient, EGPO)."""
    theirs = plays.reversed
    ahead = replace(rule, opponent=current_opponent, eta=eta)
    return plays.other.weights_of(step(ahead(theirs), theirs))


# Anchors: (plays, share) -> θ (..., n).


def current_anchor(plays: Plays, share: float) -> Array:
    """π_t."""
    return plays.own.logp


def mixture_anchor(plays: Plays, share: float) -> Array:
    """π_t^μ."""
    return plays.own.mixture(share)


def geometric_anchor(plays: Plays, share: float) -> Array:
    """The geometric mean of the remembered policies, mixed with μ as π_t is in π_t^μ (MNPO)."""
    return replace(plays.own, logp=_known(plays.own.logp_geometric, "geometric")).mixture(share)


# Directions: (plays, opponent weights) -> G (..., n).


def win_rate(plays: Plays, weights: Array) -> Array:
    """P(y ≻ opponent) (RSPO Eq. 7)."""
    return plays.against(weights)


def log_odds(plays: Plays, weights: Array) -> Array:
    """log data(y)/opponent(y): the log-odds of the optimal discriminator (SPIN)."""
    return _known(plays.own.logp_data, "data") - _known(plays.own.logp_average, "average")


def bradley_terry(plays: Plays, weights: Array) -> Array:
    """Scores of the Bradley–Terry model that is fitted to preferences among π_t (DPO).

    On samples their mean is that of the batch, which `Plays.centering` corrects.
    """
    if plays.payoff is None or plays.other is not plays.own:
        raise InputError(
            "Bradley-Terry scores (dpo) need preferences that a policy plays itself by"
        )
    return plays.centering * bradley_terry_scores(plays.payoff, weights)


# Baselines: (plays, direction, anchor, eta) -> B.


def half(plays: Plays, direction: Array, anchor: Array, eta: float) -> float:
    """½, the value of a preference game (RSPO Eq. 8)."""
    return 0.5


def mean(plays: Plays, direction: Array, anchor: Array, eta: float) -> Array:
    """E_{y∼π_t} G(y)."""
    return dot(plays.own.weights, direction)[..., None]


def log_partition(plays: Plays, direction: Array, anchor: Array, eta: float) -> Array:
    """(1/η) log Z, which makes anchor + η(G − B) a log-probability (SPPO's exact target).

    On samples of π_t, Z is estimated from the K draws: biased at O(1/K).
    """
    theta = anchor + eta * direction
    if plays.own.log_weight is not None:
        theta = theta + plays.own.log_base
    return logsumexp(theta, keepdims=True) / eta


Regularization = Literal["none", "implicit", "explicit", "mixture"]
Needed = Literal["average", "geometric", "previous", "data"]
StepSize = float | Schedule | Literal["theory"] | None


@dataclass(frozen=True)
class UpdateRule:
    """An algorithm of self-play. Frozen: make variants with `dataclasses.replace`.

    regularization  how μ acts: `implicit` in the step (GMMD), `explicit` as −τ∂R(π_t, μ) in the
                    direction (OMD), `mixture` through π_t^μ with share ητ (Nash-MD), or `none`
    regularizer     R; rules with `only_reverse_kl` accept no other
    tau             temperature of the target game; 0: the same rule without R
    eta             step size: a number, a schedule t -> number, `theory`, or None: `theory` where
                    there is one, else the no-regret step
    alpha           share of π_t in mixtures, instead of 1 − ητ (α-SPIN, IPO-MD)
    memory          how many policies are remembered: 1, 2, …, inf
    remember_start  whether π_0 stays in an infinite memory once there is another policy
    magnet_every    m: μ becomes π_t every m steps, and the schedule of η restarts; the target is
                    then the game without R (MPO, COMAL)
    mixture_share   (eta, tau) -> the share of μ in the rule's geometric mixtures; None: 1 − alpha,
                    or ητ where there is no alpha
    theory          the theorem on its step size and rate, if there is one
    needs           inputs required besides π_t and μ; "data": the rule learns from a data
                    distribution instead of a payoff
    converges       the iterate that converges by theory: `last`, `average`, or `neither`
    constant_step_bias  whether a constant step converges O(η) away from the equilibrium
    note            what to expect of its runs, for tables

    A rule with an opponent, anchor or direction of its own declares here what these need, and
    replaces the `theory`, `mixture_share` and `note` of the rule that it is a variant of.
    """

    name: str
    opponent: Callable[[Plays, UpdateRule, float], Array] = current_opponent
    anchor: Callable[[Plays, float], Array] = current_anchor
    direction: Callable[[Plays, Array], Array] = win_rate
    baseline: Callable[[Plays, Array, Array, float], float | Array] = half
    regularization: Regularization = "none"
    regularizer: Divergence = reverse_kl
    only_reverse_kl: bool = False
    tau: float = DEFAULT_TAU
    eta: StepSize = None
    alpha: float | None = None
    memory: float = 1
    remember_start: bool = True
    magnet_every: int | None = None
    mixture_share: Callable[[float, float], float] | None = None
    theory: Theory | None = None
    needs: tuple[Needed, ...] = ()
    converges: Literal["last", "average", "neither"] = "last"
    constant_step_bias: bool = False
    note: str = ""

    @property
    def step_size(self) -> float | str:
        """η: a number, the name of a schedule, or `best_response` where there is no step."""
        if callable(self.eta):
            return getattr(self.eta, "__qualname__", type(self.eta).__name__).partition(".")[0]
        return "best_response" if self.eta == math.inf else self.eta_at(0)

    @property
    def needs_data(self) -> bool:
        """Whether it learns from a data distribution instead of a payoff."""
        return "data" in self.needs

    @property
    def regularized(self) -> bool:
        """Whether the rule has a regularizer."""
        return self.regularization != "none"

    @property
    def mixes(self) -> bool:
        """Whether a geometric mixture with μ, of that `share`, is part of the rule."""
        declared = self.mixture_share is not None or self.alpha is not None
        return declared or self.regularization == "mixture"

    @property
    def target(self) -> tuple[Divergence | None, float]:
        """Regularizer and temperature of the target game; (None, 0) for the unregularized game."""
        plain = not self.regularized or self.tau == 0 or self.magnet_every is not None
        return (None, 0.0) if plain else (self.regularizer, self.tau)

    def eta_at(self, t: int) -> float:
        """The step size at step t = 0, 1, …; raises InputError where it is not resolved yet."""
        since = t - self.magnet(t)
        eta = self.eta(since) if callable(self.eta) else self.eta
        if not isinstance(eta, int | float) or not eta > 0:
            raise InputError(f"rule '{self.name}' needs a positive step size eta, not {eta!r}")
        return float(eta)

    def share(self, eta: float) -> float:
        """The share of μ in mixtures: `mixture_share`, or 1 − alpha, or ητ."""
        if self.mixture_share is not None:
            return self.mixture_share(eta, self.tau)
        return eta * self.tau if self.alpha is None else 1 - self.alpha

    def magnet(self, t: int) -> int:
        """The iterate that is μ at step t = 0, 1, …; iterate 0 is the reference."""
        return 0 if self.magnet_every is None else t - t % self.magnet_every

    def remembered(self, t: int) -> list[int]:
        """The iterates in the memory at step t = 0, 1, …, newest first, with equal weights.

        The policies before the start count as equal to it (α-SPIN, Algorithm 2).
        """
        if self.memory != math.inf:
            return [max(t - i, 0) for i in range(int(self.memory))]
        oldest = 0 if self.remember_start or t == 0 else 1
        return list(range(t, oldest - 1, -1))

    def __call__(self, plays: Plays, t: int = 0) -> Update:
        """The update of π_t at step t = 0, 1, … ."""
        eta = self.eta_at(t)
        share = self.share(eta)
        if self.regularization == "mixture" and share > 1:
            raise InputError(
                f"rule '{self.name}' needs eta * tau <= 1, not {share:g}: take a smaller eta"
            )
        direction = self.direction(plays, self.opponent(plays, self, eta))
        drift = 0.0
        if self.regularization == "explicit" and self.tau > 0:
            own = plays.own
            drift = -self.tau * own.mirror.gradient(self.regularizer, own.logp, own.logp_ref)
            direction = direction + drift
        anchor = self.anchor(plays, share)
        implicit = self.regularization == "implicit" and self.tau > 0
        return Update(
            direction,
            anchor,
            eta,
            self.baseline(plays, direction, anchor, eta),
            self.regularizer if implicit else None,
            self.tau if implicit else 0.0,
            drift,
        )


MIXED_OPPONENT = "answers π_t^μ instead of π_t, and converges elsewhere"
REWARD = "maximizes the Bradley-Terry reward of the preferences, which need have no equilibrium"

mwu = UpdateRule("mwu", converges="average")
gmmd = UpdateRule("gmmd", regularization="implicit", theory=theory.GMMD)
mmd = replace(gmmd, name="mmd", only_reverse_kl=True)
omd = UpdateRule("omd", regularization="explicit")
inpo = replace(omd, name="inpo", only_reverse_kl=True, theory=theory.INPO)
nash_md = UpdateRule(
    "nash_md",
    opponent=mixture_opponent,
    anchor=mixture_anchor,
    regularization="mixture",
    only_reverse_kl=True,
    theory=theory.NASH_MD,
    constant_step_bias=True,
)
optimistic_mwu = UpdateRule(
    "optimistic_mwu",
    opponent=optimistic_opponent,
    needs=("previous",),
    theory=theory.OPTIMISTIC,
)
optimistic_gmmd = replace(optimistic_mwu, name="optimistic_gmmd", regularization="implicit")
egpo = replace(gmmd, name="egpo", opponent=half_step_opponent, theory=theory.EGPO)
mpo = replace(mmd, name="mpo", magnet_every=50)
comal = replace(inpo, name="comal", magnet_every=50)
mnpo = UpdateRule(
    "mnpo",
    opponent=average_opponent,
    anchor=geometric_anchor,
    regularization="mixture",
    only_reverse_kl=True,
    memory=2,
    needs=("average", "geometric"),
)
fictitious_play = UpdateRule(
    "fictitious_play",
    opponent=average_opponent,
    eta=math.inf,
    memory=math.inf,
    needs=("average",),
    converges="average",
)
smooth_fictitious_play = replace(
    fictitious_play,
    name="smooth_fictitious_play",
    regularization="implicit",
    regularizer=entropy,
    converges="last",
)
ipo_md = UpdateRule(
    "ipo_md",
    opponent=mixture_opponent,
    regularization="implicit",
    eta=math.inf,
    alpha=0.875,
    converges="neither",
    note=MIXED_OPPONENT,
)
dpo = UpdateRule(
    "dpo",
    direction=bradley_terry,
    regularization="implicit",
    eta=math.inf,
    converges="neither",
    note=REWARD,
)
moving_dpo = UpdateRule("moving_dpo", direction=bradley_terry, converges="neither", note=REWARD)
alpha_spin = UpdateRule(
    "alpha_spin",
    opponent=average_opponent,
    anchor=mixture_anchor,
    direction=log_odds,
    alpha=0.95,
    eta=1.0,
    remember_start=False,
    needs=("average", "data"),
)
spin = replace(alpha_spin, name="spin", alpha=1.0)

RULES: dict[str, UpdateRule] = {
    rule.name: rule
    for rule in (
        mwu,
        gmmd,
        mmd,
        omd,
        inpo,
        nash_md,
        optimistic_mwu,
        optimistic_gmmd,
        egpo,
        mpo,
        comal,
        mnpo,
        fictitious_play,
        smooth_fictitious_play,
        ipo_md,
        dpo,
        moving_dpo,
        spin,
        alpha_spin,
    )
}
ALIASES = {"sppo": "mwu", "rspo": "gmmd"}


def get_rule(
    name: str | UpdateRule,
    *,
    eta: StepSize = None,
    tau: float | None = None,
    regularizer: str | Kernel | Divergence | None = None,
    alpha: float | None = None,
    memory: float | Literal["inf"] | None = None,
    magnet_every: int | None = None,
) -> UpdateRule:
    """The rule of that name, of `package.module:object`, or the rule itself, with these settings.

    Raises InputError for an unknown name (with the nearest), a setting that the rule does not
    have, η ≤ 0 or τ < 0.
    """
    rule = name if isinstance(name, UpdateRule) else _find(name)
    if tau is not None or regularizer is not None:
        if not rule.regularized:
            raise InputError(
                f"rule '{rule.name}' is unregularized: leave out tau and the regularizer, "
                "or use gmmd, omd or nash_md"
            )
        if tau is not None:
            rule = replace(rule, tau=0.0 if tau == 0 else _positive(tau, "tau"))
        if regularizer is not None:
            rule = replace(rule, regularizer=_regularizer(rule, regularizer))
    if eta is not None:
        if rule.eta == math.inf:
            raise InputError(f"rule '{rule.name}' plays best responses: leave out eta")
        if isinstance(eta, str) and eta != "theory":
            raise InputError(f"eta must be a positive number or 'theory', not '{eta}'")
        numeric = isinstance(eta, int | float)
        rule = replace(rule, eta=_positive(eta, "eta") if numeric else eta)
    if alpha is not None:
        if rule.alpha is None:
            users = ", ".join(name for name, known in RULES.items() if known.alpha is not None)
            raise InputError(f"alpha is not a setting of rule '{rule.name}': it is for {users}")
        if not (isinstance(alpha, int | float) and 0 <= alpha <= 1):
            raise InputError(f"alpha = {alpha} must lie between 0 and 1")
        rule = replace(rule, alpha=float(alpha))
    if memory is not None:
        memory = math.inf if memory == "inf" else memory
        if rule.eta == math.inf or not {"average", "geometric"} & set(rule.needs):
            raise InputError(f"memory is not a setting of rule '{rule.name}': leave it out")
        if memory != math.inf and not _is_count(memory):
            raise InputError(f"memory = {memory} must be 1, 2, … or inf policies")
        rule = replace(rule, memory=memory)
    if magnet_every is not None:
        if rule.magnet_every is None:
            users = ", ".join(name for name, known in RULES.items() if known.magnet_every)
            raise InputError(
                f"magnet_every is not a setting of rule '{rule.name}': it is for {users}"
            )
        if not _is_count(magnet_every):
            raise InputError(f"magnet_every = {magnet_every} must be 1, 2, … steps")
        rule = replace(rule, magnet_every=int(magnet_every))
    return rule


def accepts(rule: UpdateRule, regularizer: Divergence) -> bool:
    """Whether a rule accepts that regularizer."""
    return rule.regularized and (not rule.only_reverse_kl or regularizer == reverse_kl)


def tau_from_lam(lam: float, eta: float, factor: float = 2.0) -> float:
    """τ of a regularizer that stands in the loss of RSPO Eq. 6 as λ R̂: λ/(factor·η).

    `factor` is 2 where R̂ has the gradient of R, 1 where it has twice that (Eq. 52's square).
    """
    return lam / (factor * eta)


def _regularizer(rule: UpdateRule, given: str | Kernel | Divergence) -> Divergence:
    regularizer = parse(given)
    if not accepts(rule, regularizer):
        raise InputError(
            f"rule '{rule.name}' knows only reverse_kl, not '{regularizer.name}': use gmmd or omd"
        )
    return regularizer


def _find(name: str) -> UpdateRule:
    if ":" in name:
        return find(name, RULES, "rule", UpdateRule)
    known = ALIASES.get(name, name)
    if known not in RULES:
        raise InputError(f"unknown rule '{name}': {suggestion(name, [*RULES, *ALIASES])}")
    return RULES[known]


def _is_count(number: object) -> bool:
    """Whether it is 1, 2, …"""
    return isinstance(number, int | float) and number >= 1 and number % 1 == 0


def _positive(number: float, what: str) -> float:
    if not 0 < number < math.inf:
        raise InputError(f"{what} must be a positive number, not {number:g}")
    return float(number)


def _known(array: Array | None, what: Needed) -> Array:
    if array is None:
        raise InputError(
            f"this rule requires '{what}': declare it in `needs`"
            + (", and play a DataGame" if what == "data" else "")
        )
    return array
