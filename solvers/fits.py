"""How a parametric policy is moved, from samples, to where an update rule points.

A fit turns `Plays` and an `Update` into items. An item is a response, or a pair of them, with a few
numbers recorded at the start of an iteration: one row of a trainer's dataset. `loss` is all that is
evaluated while training; it is differentiable in log π_θ and takes rows in any order and number.

| fit | minimizer on exact Plays | gradient at π_θ = π_t |
|---|---|---|
| regression, R = 0 | the step if ηB = log Z; at B = ½ up to O(η³) if E G = ½, else O(η²) | ∝ π∘G |
| regression + λR̂ | the step up to O(η²); Eq. 52's square from π_t = μ: O(η³) | ∝ π∘(G − τ∂R) |
| policy_gradient | the step (RSPO Eq. 14 by importance weights) | ∝, half of regression's |
| proximal | the step | ∝ the step |
| pairwise | the step | ∝ π∘ρ∘v |
| logistic | the step | ∝ π∘ρ∘e, e = E_y′[label − σ(h)]: to first order as pairwise |
| – of data rules | the α-SPIN step | ∝ data − opponent, at π_θ = anchor |

All gradients are centered. v is the centered G + (anchor − log π_t)/η − τ∂R(π_t, μ), the direction
of the step, and ρ = 1/η + τφ′(log π_t/μ) the slope of the implied reward (see `Pairs`): a constant
without R and with reverse KL or entropy, where pairwise gradients are ∝ π∘v. At η = ∞ the step is
the smooth best response, which pairwise, logistic and proximal reach.

The same in expectation over K samples of π_t: regression and policy gradient (without `clip`, B
constant, G linear in the opponent), pairwise (of those rules by win_rate; by preference), logistic
by preference, and of data rules. At O(1/K): proximal, logistic by win_rate, opponents that are
self-normalized. Of samples drawn from something else (`Measure.logp_proposal`) the items count
alike, which moves no minimizer of proximal, pairwise and logistic, and that of regression without R
at O(η²) if ηB ≠ log Z; policy gradient and regression + λR̂ refuse them.

Exact Plays give the loss itself:

>>> import numpy as np
>>> from solvers import Plays, get_rule, step
>>> payoff = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]])
>>> logp, logp_ref = np.log([0.5, 0.3, 0.2]), np.log([0.2, 0.4, 0.4])
>>> rule = get_rule("gmmd", eta=0.5, tau=0.1, regularizer="chi2")
>>> fit = get_fit("proximal")
>>> fit.check(rule)
>>> plays = Plays.exact(payoff, logp, logp_ref)
>>> float(fit(plays, rule(plays), step(rule(plays), plays)))
0.0

Samples give rows (here one prompt with K = 4 responses; prompts go before K):

>>> y = np.array([2, 0, 2, 1])
>>> plays = Plays.sampled(payoff[np.ix_(y, y)], logp[y], logp_ref[y])
>>> items = fit.items(plays, rule(plays))
>>> items.index[:, 0], {name: column.shape for name, column in items.columns.items()}
(array([0, 1, 2, 3]), {'target': (4,)})

and a trainer evaluates log π_θ and the loss on any of them:

>>> rows = [3, 0]
>>> log_pi_theta = logp[y][items.index[rows]]
>>> fit.loss(log_pi_theta, {name: column[rows] for name, column in items.columns.items()}).shape
(2,)
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import numpy as np
from array_api_compat import array_namespace, device

from games.errors import InputError

from .arrays import Array, dot
from .divergences import Divergence, parse
from .estimators import EstimatorName, estimate, factor
from .mirror import ENTROPY
from .plays import Diagonal, Plays
from .rules import Update, UpdateRule, bradley_terry, half, tau_from_lam, win_rate
from .steps import step

_LAM = "lam:"  # columns of this prefix are the λ of one term of R each


@dataclass(frozen=True)
class Items:
    """Rows for training.

    index    (..., I, arity) which of the points of the Plays a row is about
    weight   (..., I) what a row counts for: the loss of a prompt is Σ weight · loss. Uniform on
             samples
    columns  {name: (..., I)} numbers that `loss` needs
    """

    index: Array
    weight: Array
    columns: dict[str, Array]


@dataclass(frozen=True)
class Temperature:
    """Which game a term of R aims at: that of temperature `tau`, with K samples of `effective`.

    `lam` is its λ in the loss, None where it is not there; `effective` None where none is claimed.
    """

    term: str
    lam: float | None
    tau: float
    effective: float | None


@dataclass(frozen=True)
class Fit(ABC):
    """A way to fit π_θ. `centered` says that a sampled loss centers what it fits on the batch."""

    name: ClassVar[str]
    centered: ClassVar[bool] = False

    def reaches(self, sampled: bool) -> bool:
        """Whether it aims where its table says: on exact Plays, or on K samples in expectation."""
        return True

    def __post_init__(self) -> None:
        """Raises InputError for an option's value that is not of its kind."""
        kinds = get_type_hints(type(self))
        for field in fields(self):
            kind, value = kinds[field.name], getattr(self, field.name)
            if choices := get_args(kind):
                if value not in choices:
                    raise InputError(f"{field.name} '{value}': choose from {', '.join(choices)}")
            elif kind is bool and not isinstance(value, bool):
                raise InputError(f"{field.name} must be true or false, not {value!r}")
            elif kind is float and not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise InputError(f"{field.name} must be a number that is at least 0, not {value!r}")

    @abstractmethod
    def items(self, plays: Plays, update: Update) -> Items:
        """What to record. Raises InputError where this fit cannot go where the update points."""

    @abstractmethod
    def loss(self, logp_items: Array, columns: dict[str, Array]) -> Array:
        """(..., I, arity), {name: (..., I)} -> (..., I): of log π_θ at the items' responses."""

    def __call__(self, plays: Plays, update: Update, logp_theta: Array) -> Array:
        """(..., n) -> (...,): the loss of log π_θ, the expectation itself on exact Plays."""
        items = self.items(plays, update)
        xp = array_namespace(logp_theta)
        flat = xp.reshape(items.index, (*items.index.shape[:-2], -1))
        logp_items = xp.reshape(xp.take_along_axis(logp_theta, flat, axis=-1), items.index.shape)
        return dot(items.weight, self.loss(logp_items, items.columns))

    def factor(self, term: str) -> float:
        """By how much the gradient of what stands for that term of R exceeds R's."""
        return 1.0

    def game(self, regularizer: Divergence, lam: float, eta: float) -> tuple[Divergence, float]:
        """(R, τ) of the game that a term λR̂ in the loss of RSPO Eq. 6 aims at: τ = λ/(2η).

        R is the given one with every term times the factor that its estimator carries.
        """
        parts = [self.factor(name) * c * parse(name) for name, c in regularizer.parts.items()]
        return sum(parts[1:], parts[0]), tau_from_lam(lam, eta)

    def coefficients(self, regularizer: Divergence, eta: float, tau: float) -> dict[str, float]:
        """{term: λ} of an R that acts in the step, where this fit has it in its loss."""
        return {}

    def temperatures(
        self,
        rule: UpdateRule,
        eta: float,
        samples: int | None = None,
        diagonal: Diagonal = "exclude",
    ) -> list[Temperature]:
        """What each term of the rule's R aims at; `samples` is K, None for exact Plays.

        Own entries shrink G by (K − 1)/K. Where the fit does not center on the batch, the pull of μ
        keeps its size beside that, and the game aimed at is that of temperature τK/(K − 1). (The
        mixed opponent of Nash-MD is biased at O(1/K) besides.)
        """
        regularizer, tau = rule.target
        if regularizer is None:
            return []
        implicit = rule.regularization == "implicit"
        lams = self.coefficients(regularizer, eta, tau) if implicit else {}
        scale = 1.0
        if samples is not None and diagonal == "include" and not self.centered:
            scale = samples / (samples - 1)
        known = self.centered or rule.baseline is half  # other baselines center G on the batch
        claimed = self.reaches(samples is not None) and (samples is None or known)
        return [
            Temperature(name, lams.get(name), tau * c, scale * tau * c if claimed else None)
            for name, c in regularizer.parts.items()
        ]

    def check(self, rule: UpdateRule, proposal: bool = False) -> None:
        """Raises InputError, before anything is sampled, where this fit cannot serve the rule.

        `proposal`: the samples will be drawn from something else than π_t.
        """
        logp, logp_ref = np.log([0.2, 0.3, 0.5]), np.log([0.5, 0.3, 0.2])
        payoff = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]])
        remembered = logp if rule.memory == 1 else logp_ref
        plays = Plays.sampled(
            payoff,
            logp,
            logp_ref,
            logp_average=remembered,
            logp_geometric=remembered,
            logp_previous=logp_ref,
            logp_proposal=logp_ref if proposal else None,
            length=np.array([3.0, 4.0, 5.0]),
        )
        if rule.needs_data:
            plays = Plays.with_data(logp, logp_ref, data=1)
        self.items(plays, rule(plays))


@dataclass(frozen=True)
class Proximal(Fit):
    """Regression on the tabular step's own log π_{t+1}, at the responses: bounded targets."""

    name = "proximal"
    centered = True

    def items(self, plays: Plays, update: Update) -> Items:
        _refuse(update, best_response=update.regularizer is None)
        return _responses(plays, {"target": step(update, plays)})

    def loss(self, logp_items: Array, columns: dict[str, Array]) -> Array:
        return (logp_items[..., 0] - columns["target"]) ** 2


@dataclass(frozen=True)
class Regularized(Fit):
    """What regression and policy gradient share: R̂ on the responses.

    estimator          what stands for R, see `estimators`
    clip               of the log-ratios of the published estimators
    direct_forward_kl  leave forward KL out: the trainer adds rows sampled from μ with the loss
                       `direct_forward_kl(logp, fit.coefficients(R, eta, tau)["forward_kl"])`
    """

    estimator: EstimatorName = "importance"
    clip: float = 10.0
    direct_forward_kl: bool = False

    scale: ClassVar[float] = 1.0
    any_samples: ClassVar[bool] = True

    def factor(self, term: str) -> float:
        return factor(term, self.estimator)

    def coefficients(self, regularizer: Divergence, eta: float, tau: float) -> dict[str, float]:
        """{term: λ}: 2ητ times its weight in R, over the factor that its estimator carries."""
        lam = self.scale * 2 * eta * tau
        return {name: lam * c / self.factor(name) for name, c in regularizer.parts.items()}

    def _recorded(self, plays: Plays, update: Update) -> Items:
        """Raises InputError where a loss that weighs by π_t is for samples of something else."""
        _refuse(update)
        target = update.anchor + update.eta * (update.direction - update.baseline)
        columns = {"target": target, "logp_current": plays.own.logp, "logp_ref": plays.own.logp_ref}
        lams: dict[str, float] = {}
        if update.regularizer is not None:
            lams = self.coefficients(update.regularizer, update.eta, update.tau)
        if self.direct_forward_kl:
            lams.pop("forward_kl", None)
        for name, lam in lams.items():
            columns[_LAM + name] = array_namespace(target).full_like(target, lam)
        if plays.own.logp_proposal is not None and (lams or not self.any_samples):
            raise InputError(
                f"fit '{self.name}' needs responses of the current policy here: draw them from it, "
                "or take fit proximal or pairwise"
            )
        return _responses(plays, columns)

    def _penalty(self, logp: Array, columns: dict[str, Array]) -> Array | float:
        """(..., I) -> (..., I): Σ λR̂ over the terms of R."""
        recorded = columns["logp_ref"], columns["logp_current"]
        return sum(
            lam * estimate(self.estimator, name, logp, *recorded, self.clip)
            for name, lam in _lams(columns).items()
        )


@dataclass(frozen=True)
class Regression(Regularized):
    """(log π_θ − [anchor + η(G − B)])² + λR̂ (RSPO Eq. 6, and Eq. 8 with B = ½).

    `responses=best_worst` keeps the responses of the highest and lowest G only, as the published
    SPPO and RSPO code does: a biased choice, for which nothing is claimed. That code adds up R̂ of
    the two where their squares are averaged: its λ is half of λ here.
    """

    name = "regression"
    responses: Literal["all", "best_worst"] = "all"

    def reaches(self, sampled: bool) -> bool:
        return self.responses == "all"

    def items(self, plays: Plays, update: Update) -> Items:
        items = self._recorded(plays, update)
        if self.responses == "all":
            return items
        if plays.own.log_weight is None:
            raise InputError("responses=best_worst chooses among samples: exact Plays need 'all'")
        xp = array_namespace(update.direction)
        ends = [xp.argmax(update.direction, axis=-1), xp.argmin(update.direction, axis=-1)]
        chosen = xp.stack(ends, axis=-1)
        columns = {k: xp.take_along_axis(v, chosen, axis=-1) for k, v in items.columns.items()}
        return Items(chosen[..., None], xp.full_like(columns["target"], 0.5), columns)

    def loss(self, logp_items: Array, columns: dict[str, Array]) -> Array:
        logp = logp_items[..., 0]
        return (logp - columns["target"]) ** 2 + self._penalty(logp, columns)


@dataclass(frozen=True)
class PolicyGradient(Regularized):
    """−η⟨G − B, π_θ⟩ + KL(π_θ‖anchor) + ητR̂ (RSPO Eq. 14), by importance weights π_θ/π_t.

    A sample's gradient is (π_θ/π_t)(log π_θ/anchor − η(G − B))∇log π_θ: Eq. 15, off policy too.
    """

    name = "policy_gradient"
    scale = 0.5
    any_samples = False

    def items(self, plays: Plays, update: Update) -> Items:
        return self._recorded(plays, update)

    def loss(self, logp_items: Array, columns: dict[str, Array]) -> Array:
        logp = logp_items[..., 0]
        ratio = array_namespace(logp).exp(logp - columns["logp_current"])
        # −1 has mean zero, E π_θ/π_t = 1, and leaves no noise where log π_θ is at its target.
        return ratio * (logp - columns["target"] - 1) + self._penalty(logp, columns)


@dataclass(frozen=True)
class Pairs(Fit):
    """Pairs of responses: their implied rewards against a signal of which is better.

    The step of a rule is where the reward that π_θ implies,

        r_θ = (1/η)(log π_θ − anchor) − drift + τφ(log π_θ/μ),  φ = f′ of the implicit R, φ(1) = 0,

    is G − drift up to a constant; at η = ∞ R alone is left of it. Each pair occurs once, and h is
    its r_θ(y) − r_θ(y′).

    signal  `win_rate`: the gap of G − drift, for any rule.
            `preference`: P(y ≻ y′), which says the same in expectation where G − drift `follows`
            the preferences among what the responses are drawn from; other rules are refused.
            `winner`: which of the two is preferred, ½ for each at a tie, as published for labels.
            Of 0/1 payoffs it is `preference`; of others nothing is claimed, and the opponent of
            the rule is not looked at.
    length_normalized  r_θ is divided by the tokens of the response (SimPO); nothing is claimed
    """

    centered = True
    follows: ClassVar[Callable[[Plays, Array], Array]]
    following: ClassVar[str]
    signal: Literal["win_rate", "preference", "winner"] = "win_rate"
    length_normalized: bool = False

    def reaches(self, sampled: bool) -> bool:
        return self.signal != "winner" and not self.length_normalized

    def items(self, plays: Plays, update: Update) -> Items:
        i, j, weight, signal = self._pairs(plays, update)
        xp, beta = array_namespace(signal), 1 / update.eta
        columns = {"signal": signal, "beta": xp.full_like(signal, beta)}
        columns |= _both("offset", beta * update.anchor + update.drift, i, j)
        if update.regularizer is not None:
            columns |= _both("logp_ref", plays.own.logp_ref, i, j)
            for name, c in update.regularizer.parts.items():
                columns[_LAM + name] = xp.full_like(signal, update.tau * c)
        if self.length_normalized:
            if plays.own.length is None:
                raise InputError(
                    "length_normalized: nothing is known of lengths here, leave it out"
                )
            columns |= _both("length", plays.own.length, i, j)
        return Items(_broadcast(xp.stack([i, j], axis=-1), signal), weight, columns)

    def _pairs(self, plays: Plays, update: Update) -> tuple[Array, Array, Array, Array]:
        """(I,), (I,), (..., I), (..., I): y, y′, what the pair counts for, and its signal."""
        _refuse(update, best_response=update.regularizer is None)
        xp, n = array_namespace(update.direction), update.direction.shape[-1]
        points = xp.arange(n, device=device(update.direction))
        i, j = xp.nonzero(points[:, None] < points)
        if self.signal == "win_rate":
            won = update.direction - update.drift
            # Both of a pair met the other: without own entries their gap counts that game twice.
            signal = (xp.take(won, i, axis=-1) - xp.take(won, j, axis=-1)) / plays.centering
        else:
            signal = self._preferences(plays, update, i, j)
        weights = _drawn(plays)
        weight = 2 * xp.take(weights, i, axis=-1) * xp.take(weights, j, axis=-1)
        if plays.own.log_weight is not None:
            weight = xp.full_like(signal, 1 / signal.shape[-1])
        return i, j, weight, signal

    def _preferences(self, plays: Plays, update: Update, i: Array, j: Array) -> Array:
        """(I,), (I,) -> (..., I): P(y ≻ y′) − ½, or half its sign."""
        xp, n = array_namespace(update.direction), update.direction.shape[-1]
        table = xp.reshape(plays.payoff, (*update.direction.shape[:-1], n * n))
        gap = 0.5 * (xp.take(table, i * n + j, axis=-1) - xp.take(table, j * n + i, axis=-1))
        if self.signal == "winner":
            return 0.5 * xp.sign(gap)
        followed = self.follows(plays, _drawn(plays))
        apart = update.direction - update.drift - followed
        apart = apart - apart[..., :1]  # constants do not matter
        if bool(xp.any(xp.abs(apart) > 1e-6 * (1 + xp.abs(followed)))):
            raise InputError(
                f"fit '{self.name}' with signal=preference follows the {self.following} "
                "of the responses among themselves, and this rule does not: use signal=win_rate"
            )
        return gap

    def _gap(self, logp_items: Array, columns: dict[str, Array]) -> Array:
        """(..., I, 2) -> (..., I): h."""
        rewards = columns["beta"][..., None] * logp_items - _stacked("offset", columns)
        for name, lam in _lams(columns).items():
            slope = ENTROPY.gradient(parse(name), logp_items, _stacked("logp_ref", columns))
            rewards = rewards + lam[..., None] * slope
        if self.length_normalized:
            rewards = rewards / _stacked("length", columns)
        return rewards[..., 0] - rewards[..., 1]


@dataclass(frozen=True)
class Pairwise(Pairs):
    """(h − signal)², times s² for s = 1/(1/η + τ): in units of log-ratios.

    INPO Eq. 7 (its η is 1/η here), and Eq. 8 by signal=preference (Prop. 6); REBEL; IPO. P counts
    as P − ½, and a winner as ½. `follows` the win rate, the mean of P(y ≻ y′) over y′.

    error  `hinge`: s·max(0, 1 − h) of the winner over the loser (SLiC-HF, whose δ is s).
    """

    name = "pairwise"
    follows, following = staticmethod(win_rate), "win rates"
    error: Literal["squared", "hinge"] = "squared"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.error == "hinge" and self.signal != "winner":
            raise InputError("error=hinge asks who wins a pair: set signal=winner beside it")

    def loss(self, logp_items: Array, columns: dict[str, Array]) -> Array:
        h, signal = self._gap(logp_items, columns), columns["signal"]
        scale = 1 / sum(_lams(columns).values(), start=columns["beta"])
        if self.error == "squared":
            return (scale * (h - signal)) ** 2
        zero = 0 * h
        lost = array_namespace(h).maximum
        return scale * ((0.5 + signal) * lost(1 - h, zero) + (0.5 - signal) * lost(1 + h, zero))


@dataclass(frozen=True)
class Logistic(Pairs):
    """Cross-entropy of σ(h) with the probability that y is preferred; −log σ(h) for a winner.

    DPO with any link function; SPIN and α-SPIN (α-SPIN Eq. 6), where every answer of the data wins
    against every one of the opponent's, whatever `signal` (`Plays.with_data`); DNO-Prct; SimPO.
    signal=win_rate takes σ of the gap for that probability. `follows` the Bradley–Terry model that
    is fitted to P.

    margin  γ, which a winner's h has to exceed (SimPO)
    """

    name = "logistic"
    follows, following = staticmethod(bradley_terry), "Bradley-Terry scores"
    margin: float = 0.0

    def reaches(self, sampled: bool) -> bool:
        # σ of a gap that is known from K − 1 opponents is biased at O(1/K).
        known = self.signal == "preference" or not sampled
        return super().reaches(sampled) and self.margin == 0 and known

    def _pairs(self, plays: Plays, update: Update) -> tuple[Array, Array, Array, Array]:
        data, opponent = plays.own.logp_data, plays.own.logp_average
        xp, n = array_namespace(update.direction), update.direction.shape[-1]
        if data is None or opponent is None or bool(xp.any(update.direction != data - opponent)):
            i, j, weight, signal = super()._pairs(plays, update)
            label = xp.exp(-_softplus(-signal)) if self.signal == "win_rate" else 0.5 + signal
            return i, j, weight, label
        weight = xp.exp(data[..., :, None] + opponent[..., None, :])
        weight = xp.reshape(weight, (*weight.shape[:-2], n * n))
        (pairs,) = xp.nonzero(xp.any(xp.reshape(weight, (-1, n * n)) > 0, axis=0))
        weight = xp.take(weight, pairs, axis=-1)
        return pairs // n, pairs % n, weight, xp.ones_like(weight)

    def loss(self, logp_items: Array, columns: dict[str, Array]) -> Array:
        h, label = self._gap(logp_items, columns), columns["signal"]
        return label * _softplus(self.margin - h) + (1 - label) * _softplus(self.margin + h)


def direct_forward_kl(logp_items: Array, lam: Array | float) -> Array:
    """(..., I, 1), (..., I) -> (..., I): −λ log π_θ at responses sampled once from μ (App. C.3).

    Its mean over μ is λ KL(μ‖π_θ) up to a constant, on and off policy.
    """
    return -lam * logp_items[..., 0]


FITS: dict[str, type[Fit]] = {
    fit.name: fit for fit in (Regression, Proximal, Pairwise, Logistic, PolicyGradient)
}


def get_fit(name: str | Fit, **options: Any) -> Fit:
    """The fit of that name, or the fit itself, with these options.

    Raises InputError for an unknown name or option (with the nearest) or a value not to choose.
    """
    if isinstance(name, Fit):
        return replace(name, **options)
    if name not in FITS:
        raise _unknown("fit", name, FITS)
    for option in options:
        known = [f.name for f in fields(FITS[name])]
        if option not in known:
            raise _unknown(f"option of fit '{name}':", option, known)
    return FITS[name](**options)


def _unknown(what: str, name: str, known) -> InputError:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(known) or 'none'}"
    return InputError(f"unknown {what} '{name}': {hint}")


def _refuse(update: Update, best_response: bool = True) -> None:
    if best_response and update.eta == math.inf:
        raise InputError("this rule plays best responses, which no fit reaches: take another rule")
    xp = array_namespace(update.direction)
    if not bool(xp.all(xp.isfinite(update.direction))):
        raise InputError(
            "the direction is not finite: samples of spin and alpha_spin need logistic"
        )


def _drawn(plays: Plays) -> Array:
    """(..., n): π_t of exact Plays, and of samples as often as they are drawn, alike."""
    own = plays.own
    return replace(own, logp_proposal=None).weights


def _responses(plays: Plays, columns: dict[str, Array]) -> Items:
    """One item per point."""
    logp = plays.own.logp
    index = array_namespace(logp).arange(logp.shape[-1], device=device(logp))
    return Items(_broadcast(index[:, None], logp), _drawn(plays), columns)


def _both(name: str, values: Array, i: Array, j: Array) -> dict[str, Array]:
    """(..., n), (..., I), (..., I) -> two columns: the values at both responses of the pairs."""
    xp = array_namespace(values)
    return {
        f"{name}_first": xp.take(values, i, axis=-1),
        f"{name}_second": xp.take(values, j, axis=-1),
    }


def _stacked(name: str, columns: dict[str, Array]) -> Array:
    """(..., I, 2) of `_both` columns."""
    both = [columns[f"{name}_first"], columns[f"{name}_second"]]
    return array_namespace(*both).stack(both, axis=-1)


def _lams(columns: dict[str, Array]) -> dict[str, Array]:
    """{term of R: its coefficients (..., I)}."""
    return {k.removeprefix(_LAM): lam for k, lam in columns.items() if k.startswith(_LAM)}


def _softplus(x: Array) -> Array:
    """−log σ(−x)."""
    return array_namespace(x).logaddexp(x, 0 * x)


def _broadcast(index: Array, like: Array) -> Array:
    """(I, arity), (..., I) -> (..., I, arity)."""
    return array_namespace(like).broadcast_to(index, (*like.shape, index.shape[-1]))
