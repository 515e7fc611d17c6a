"""How a parametric policy is moved, from samples, to where an update rule points.

A fit turns `Plays` and an `Update` into items. An item is a response, or a pair of them, with a few
numbers recorded at the start of an iteration: one row of a trainer's dataset. `loss` is all that is
evaluated while training; it is differentiable in log π_θ and takes rows in any order and number.

| fit | minimiser on exact Plays | gradient at π_θ = π_t, centred |
|---|---|---|
| regression, R = 0 | the step if ηB = log Z; at B = ½ up to O(η³) if E G = ½, else O(η²) | ∝ π∘G |
| regression + λR̂ | the step up to O(η²); Eq. 52's square from π_t = μ: O(η³) | ∝ π∘(G − τ∂R) |
| proximal | the step | ∝ the step |
| pairwise | the step | ∝ |
| logistic | the α-SPIN step | ∝ data − opponent, at π_θ = anchor |
| policy_gradient | the step (RSPO Eq. 14 by importance weights) | ∝, half of regression's |

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
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import numpy as np
from array_api_compat import array_namespace, device

from games.errors import InputError

from .arrays import Array, dot
from .divergences import Divergence, parse
from .estimators import EstimatorName, estimate, factor
from .plays import Diagonal, Plays
from .rules import Update, UpdateRule, half, tau_from_lam
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
class Fit:
    """A way to fit π_θ. `centred` says that a sampled loss centres what it fits on the batch."""

    name: ClassVar[str]
    centred: ClassVar[bool] = False

    @property
    def unbiased(self) -> bool:
        """Whether K samples give in expectation what the fit promises."""
        return True

    def __post_init__(self) -> None:
        """Raises InputError for an option's value that is not one of its choices."""
        for option, kind in get_type_hints(type(self)).items():
            value, choices = getattr(self, option), get_args(kind)
            if choices and isinstance(choices[0], str) and value not in choices:
                raise InputError(f"{option} '{value}': choose from {', '.join(choices)}")

    def items(self, plays: Plays, update: Update) -> Items:
        """What to record. Raises InputError where this fit cannot go where the update points."""
        raise NotImplementedError

    def loss(self, logp_items: Array, columns: dict[str, Array]) -> Array:
        """(..., I, arity), {name: (..., I)} -> (..., I): of log π_θ at the items' responses."""
        raise NotImplementedError

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

        Own entries shrink G by (K − 1)/K. Where the fit does not centre on the batch, the pull of μ
        keeps its size beside that, and the game aimed at is that of temperature τK/(K − 1). (The
        mixed opponent of Nash-MD is biased at O(1/K) besides.)
        """
        regularizer, tau = rule.target
        if regularizer is None:
            return []
        implicit = rule.regularization == "implicit"
        lams = self.coefficients(regularizer, eta, tau) if implicit else {}
        scale = 1.0
        if samples is not None and diagonal == "include" and not self.centred:
            scale = samples / (samples - 1)
        known = self.centred or rule.baseline is half  # other baselines centre G on the batch
        claimed = samples is None or (self.unbiased and known)
        return [
            Temperature(name, lams.get(name), tau * c, scale * tau * c if claimed else None)
            for name, c in regularizer.parts.items()
        ]

    def check(self, rule: UpdateRule) -> None:
        """Raises InputError, before anything is sampled, where this fit cannot serve the rule."""
        logp, logp_ref = np.log([0.2, 0.3, 0.5]), np.log([0.5, 0.3, 0.2])
        payoff = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]])
        plays = Plays.sampled(payoff, logp, logp_ref, logp_previous=logp_ref)
        if rule.needs_data:
            plays = Plays.with_data(logp, logp_ref, data=1)
        self.items(plays, rule(plays))


@dataclass(frozen=True)
class Proximal(Fit):
    """Regression on the tabular step's own log π_{t+1}, at the responses: bounded targets."""

    name = "proximal"
    centred = True

    def items(self, plays: Plays, update: Update) -> Items:
        _refuse(update, best_response=update.regularizer is None)
        return _responses(plays, {"target": step(update, plays)})

    def loss(self, logp_items: Array, columns: dict[str, Array]) -> Array:
        return (logp_items[..., 0] - columns["target"]) ** 2


@dataclass(frozen=True)
class Regularised(Fit):
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

    def factor(self, term: str) -> float:
        return factor(term, self.estimator)

    def coefficients(self, regularizer: Divergence, eta: float, tau: float) -> dict[str, float]:
        """{term: λ}: 2ητ times its weight in R, over the factor that its estimator carries."""
        lam = self.scale * 2 * eta * tau
        return {name: lam * c / self.factor(name) for name, c in regularizer.parts.items()}

    def _recorded(self, plays: Plays, update: Update) -> Items:
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
        return _responses(plays, columns)

    def _penalty(self, logp: Array, columns: dict[str, Array]) -> Array | float:
        """(..., I) -> (..., I): Σ λR̂ over the terms of R."""
        recorded = columns["logp_ref"], columns["logp_current"]
        return sum(
            lam * estimate(self.estimator, name.removeprefix(_LAM), logp, *recorded, self.clip)
            for name, lam in columns.items()
            if name.startswith(_LAM)
        )


@dataclass(frozen=True)
class Regression(Regularised):
    """(log π_θ − [anchor + η(G − B)])² + λR̂ (RSPO Eq. 6, and Eq. 8 with B = ½).

    `responses=best_worst` keeps the responses of the highest and lowest G only, as the published
    SPPO and RSPO code does: a biased choice, for which nothing is claimed. That code adds up R̂ of
    the two where their squares are averaged: its λ is half of λ here.
    """

    name = "regression"
    responses: Literal["all", "best_worst"] = "all"

    @property
    def unbiased(self) -> bool:
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
class PolicyGradient(Regularised):
    """−η⟨G − B, π_θ⟩ + KL(π_θ‖anchor) + ητR̂ (RSPO Eq. 14), by importance weights π_θ/π_t.

    A sample's gradient is (π_θ/π_t)(log π_θ/anchor − η(G − B))∇log π_θ: Eq. 15, off policy too.
    """

    name = "policy_gradient"
    scale = 0.5

    def items(self, plays: Plays, update: Update) -> Items:
        return self._recorded(plays, update)

    def loss(self, logp_items: Array, columns: dict[str, Array]) -> Array:
        logp = logp_items[..., 0]
        ratio = array_namespace(logp).exp(logp - columns["logp_current"])
        # −1 has mean zero, E π_θ/π_t = 1, and leaves no noise where log π_θ is at its target.
        return ratio * (logp - columns["target"] - 1) + self._penalty(logp, columns)


@dataclass(frozen=True)
class Pairwise(Fit):
    """Squared log-ratios of pairs of responses (INPO; its η is 1/η here), each pair once.

    signal  `win_rate`: η(G_i − G_j) (Eq. 7), for any rule. `preference`: η(P_ij − ½), for rules
            whose G is the win rate against π_t: the same in expectation (Prop. 6), and Eq. 8
            where the payoffs are 0/1 labels.
    """

    name = "pairwise"
    centred = True
    signal: Literal["win_rate", "preference"] = "win_rate"

    def items(self, plays: Plays, update: Update) -> Items:
        _refuse(update)
        if update.regularizer is not None:
            raise InputError("fit 'pairwise' has no term for R: use rule omd, or fit proximal")
        xp, n = array_namespace(update.anchor), update.anchor.shape[-1]
        points = xp.arange(n, device=device(update.anchor))
        i, j = xp.nonzero(points[:, None] < points)

        def gap(x: Array) -> Array:
            return xp.take(x, i, axis=-1) - xp.take(x, j, axis=-1)

        if self.signal == "win_rate":
            # Both of a pair met the other: without own entries their gap counts that game twice.
            signal = gap(update.direction - update.drift) / plays.centring
        else:
            table = _preferences(plays, update)
            signal = 0.5 * (xp.take(table, i * n + j, axis=-1) - xp.take(table, j * n + i, axis=-1))
        # h_t = log π_θ(y)/π_θ(y′) − gap(anchor + η drift) (INPO, above Eq. 6)
        target = gap(update.anchor + update.eta * update.drift) + update.eta * signal
        weights = plays.own.weights
        weight = 2 * xp.take(weights, i, axis=-1) * xp.take(weights, j, axis=-1)
        if plays.own.log_weight is not None:
            weight = xp.full_like(target, 1 / target.shape[-1])
        return Items(_broadcast(xp.stack([i, j], axis=-1), target), weight, {"target": target})

    def loss(self, logp_items: Array, columns: dict[str, Array]) -> Array:
        return (logp_items[..., 0] - logp_items[..., 1] - columns["target"]) ** 2


def _preferences(plays: Plays, update: Update) -> Array:
    """(..., n²): the payoffs of all pairs, where the rule follows their mean against π_t."""
    xp = array_namespace(update.direction)
    expected = plays.against(plays.other.weights) + update.drift
    if bool(xp.any(xp.abs(update.direction - expected) > 1e-6 * (1 + xp.abs(expected)))):
        raise InputError(
            "signal=preference is for rules whose direction is the win rate against the current "
            "policy: use signal=win_rate"
        )
    return xp.reshape(plays.payoff, (*update.direction.shape[:-1], -1))


@dataclass(frozen=True)
class Logistic(Fit):
    """−log σ(β gap(log π_θ/anchor)) of answers of the data over the opponent's, β = 1/η.

    DPO as in SPIN and α-SPIN (α-SPIN Eq. 6, Algorithm 2). Samples come as `Plays.with_data`; every
    answer of the data is paired with every one of the opponent's, winner first.
    """

    name = "logistic"

    def items(self, plays: Plays, update: Update) -> Items:
        data, opponent = plays.own.logp_data, plays.own.logp_average
        xp, n = array_namespace(update.anchor), update.anchor.shape[-1]
        if data is None or opponent is None or bool(xp.any(update.direction != data - opponent)):
            raise InputError(
                "fit 'logistic' is for rules that play data against an opponent (spin, alpha_spin)"
            )
        weight = xp.exp(data[..., :, None] + opponent[..., None, :])
        weight = xp.reshape(weight, (*weight.shape[:-2], n * n))
        (pairs,) = xp.nonzero(xp.any(xp.reshape(weight, (-1, n * n)) > 0, axis=0))
        i, j = pairs // n, pairs % n
        anchor = xp.take(update.anchor, i, axis=-1) - xp.take(update.anchor, j, axis=-1)
        columns = {"anchor": anchor, "beta": xp.full_like(anchor, 1 / update.eta)}
        index = _broadcast(xp.stack([i, j], axis=-1), anchor)
        return Items(index, xp.take(weight, pairs, axis=-1), columns)

    def loss(self, logp_items: Array, columns: dict[str, Array]) -> Array:
        gap = logp_items[..., 0] - logp_items[..., 1] - columns["anchor"]
        xp = array_namespace(gap)
        return xp.logaddexp(xp.zeros_like(gap), -columns["beta"] * gap)


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


def _responses(plays: Plays, columns: dict[str, Array]) -> Items:
    """One item per point, under the weights that stand for π_t."""
    logp = plays.own.logp
    index = array_namespace(logp).arange(logp.shape[-1], device=device(logp))
    return Items(_broadcast(index[:, None], logp), plays.own.weights, columns)


def _broadcast(index: Array, like: Array) -> Array:
    """(I, arity), (..., I) -> (..., I, arity)."""
    return array_namespace(like).broadcast_to(index, (*like.shape, index.shape[-1]))
