"""Losses that fit a parametric policy to an update rule, from samples.

A fit turns `Plays` and an `Update` into items. An item is a response, or a pair of them, with a few
numbers recorded at the start of an iteration: one row of a trainer's dataset. `loss` is all that is
evaluated during training; it is differentiable in log π_θ and takes rows in any order and number.

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

The same holds in expectation over K samples of π_t for regression and policy gradient (without
`clip`, B constant, G linear in the opponent), pairwise (for those rules by win_rate; by
preference), logistic by preference and for data rules. It holds up to O(1/K) for proximal, logistic
by win_rate, and self-normalized opponents. Samples drawn from something else
(`Measure.logp_proposal`) have equal weights, which does not move the minimizers of proximal,
pairwise and logistic, and moves that of regression without R at O(η²) if ηB ≠ log Z; policy
gradient and regression + λR̂ refuse them.

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

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from games.errors import InputError
from games.lookup import find, suggestion

from .base import Fit, Items, Temperature
from .pairs import Logistic, Pairs, Pairwise
from .regression import PolicyGradient, Proximal, Regression, Regularized, direct_forward_kl

__all__ = [
    "FITS",
    "Fit",
    "Items",
    "Logistic",
    "Pairs",
    "Pairwise",
    "PolicyGradient",
    "Proximal",
    "Regression",
    "Regularized",
    "Temperature",
    "direct_forward_kl",
    "get_fit",
]

FITS: dict[str, type[Fit]] = {
    fit.name: fit for fit in (Regression, Proximal, Pairwise, Logistic, PolicyGradient)
}


def get_fit(name: str | Fit | type[Fit], **options: Any) -> Fit:
    """A fit with these options: by name, by import path `package.module:object`, or given.

    The object is a Fit or a subclass of it. Raises InputError for an unknown name or option (with
    the nearest), an import that fails, or an invalid value.
    """
    found = find(name, _CHOICES, "fit", (Fit, type)) if isinstance(name, str) else name
    if isinstance(found, type) and not issubclass(found, Fit):
        raise InputError(
            f"fit '{name}' is a class that is not a Fit: derive it from solvers.fits.Fit"
        )
    known = [field.name for field in fields(found)]
    label = name if isinstance(name, str) else found.name
    for option in options:
        if option not in known:
            raise InputError(
                f"unknown option of fit '{label}': '{option}': {suggestion(option, known)}"
            )
    return replace(found, **options) if isinstance(found, Fit) else found(**options)


_CHOICES: Mapping[str, Fit | type] = FITS
