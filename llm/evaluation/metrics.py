"""What a run measures: an evaluation of π_t, and the metrics that are computed from it.

A metric is one object: its name in metrics.jsonl, how it is measured, its unit, its column in the
table and its panel in the picture. To add one to the package, write it below and add it to
`METRICS`. One of your own is named in the configuration,
`evaluation.metrics: [package.module:object]`:

    questions = Metric.of_responses(
        "questions",
        lambda evaluation: [[text.count("?") for text in row] for row in evaluation.texts],
        unit="question marks",
    )

Standard errors are over prompts, which are independent of each other; responses to one prompt are
not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from games.errors import InputError
from games.lookup import load_object
from llm.evaluation.exact import EnumeratedGame, ExactSolution, StyleGame, target_description
from llm.evaluation.statistics import Estimate, over_prompts, self_bleu
from llm.storage.files import Record
from solvers.arrays import against
from solvers.effective_step import EffectiveStep
from solvers.loop import kl_divergence

if TYPE_CHECKING:
    from llm.policy.model import Policy
    from llm.sampling.responses import Responses

# What a metric may be: a number, one with its standard error, one of either for each of several
# classes, a text, or None where it is not defined.
Value = float | Estimate | Mapping[str, float | Estimate] | str | None

# Keys of a line of metrics.jsonl that are not metrics.
RESERVED = ("iteration", "standard_errors", "per_second", "peak_memory_gib")
ERROR = "_error"  # ends the key of a standard error, which stands beside that of the metric


@dataclass(frozen=True, kw_only=True)
class StepMade:
    """A training step: the η and τ of the rule, and those by which the policy really moved.

    made       measured on the responses that were trained on
    corrected  for the noise in their G: of the step that was made on all responses; None for
               either where `solvers.effective_step` defines none
    """

    eta: float
    tau: float | None
    made: EffectiveStep | None = None
    corrected: EffectiveStep | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What metrics are computed from: π_t and μ as measures on responses to B prompts.

    A response counts with its weight: 1/K for K samples, its probability under π_t where all
    responses are enumerated. A metric that uses the weights, or `mean`, is right for both.

    t                 the iteration
    prompts           B texts
    texts             B × K: responses of π_t
    token_counts      (B, K): their tokens, end-of-sequence token included
    logp, logp_ref    (B, K): log π_t and log μ of them
    weights           (B, K): sums to 1 for each prompt
    reference_texts   B × M: responses of μ
    reference_weights (B, M)
    preference        (B, K, M): P(response of π_t ≻ response of μ); None without a judge
    enumerated        whether these are all responses: then means are exact
    kl                (B, K): KL(π_t‖μ) along each, as in `Policy.log_probs_and_kl`; None:
                      log π_t − log μ, whose mean is the same
    exact             the exact solution of the run's game; None where it is unknown
    losses            of the optimizer steps from π_{t−1} to π_t; empty at t = 0
    step              what the step from π_{t−1} to π_t should be, and was; at t = 0 that to π_1
    seconds           since the previous evaluation
    used              {"tokens": sampled for training before t, "comparisons": judged}
    drift             (N,): the engine's own log-probability minus the policy's, in nats, of each
                      token sampled to evaluate π_t and to train it from π_{t−1}; empty for engines
                      that report none
    """

    t: int
    prompts: Sequence[str]
    texts: Sequence[Sequence[str]]
    token_counts: np.ndarray
    logp: np.ndarray
    logp_ref: np.ndarray
    weights: np.ndarray
    reference_texts: Sequence[Sequence[str]]
    reference_weights: np.ndarray
    preference: np.ndarray | None = None
    kl: np.ndarray | None = None
    enumerated: bool = False
    exact: ExactSolution | None = None
    losses: Sequence[float] = ()
    step: StepMade | None = None
    seconds: float = 0.0
    used: Mapping[str, int] = field(default_factory=dict)
    drift: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of_samples(
        cls, own: Responses, reference: Responses, preference: np.ndarray | None, **known: Any
    ) -> Evaluation:
        """K responses of π_t and M of μ to the same prompts; `known` are the other fields."""
        return cls(
            prompts=[prompt.text for prompt in own.prompts],
            texts=own.texts,
            token_counts=own.lengths,
            logp=own.logp,
            logp_ref=own.logp_ref,
            kl=own.kl,
            weights=_equal_weights(own.texts),
            reference_texts=reference.texts,
            reference_weights=_equal_weights(reference.texts),
            preference=preference,
            **known,
        )

    @classmethod
    def of_all_responses(cls, game: EnumeratedGame, policy: Policy, **known: Any) -> Evaluation:
        """Every response of an enumerated game; `known` are the other fields. The policy is π_t."""
        logp = game.log_probs(policy)
        return cls(
            prompts=game.prompts,
            texts=game.texts,
            token_counts=game.token_counts,
            logp=logp,
            logp_ref=game.logp_ref,
            weights=_normalized(np.exp(logp)),
            reference_texts=game.texts,
            reference_weights=_normalized(np.exp(game.logp_ref)),
            preference=None if game.judged is None else game.judged.payoff,
            enumerated=True,
            exact=game,
            **known,
        )

    def mean(self, values: np.ndarray | Sequence[Sequence[float]]) -> Estimate:
        """(B, K): a value for each response of π_t -> E_{π_t}[value], averaged over prompts."""
        values = np.asarray(values, dtype=float)
        if values.shape != self.weights.shape:
            raise ValueError(
                f"one value per response has shape {self.weights.shape}, not {values.shape}"
            )
        return self._exactly(over_prompts(values, self.weights))

    def mean_over_prompts(self, values: np.ndarray | Sequence[float]) -> Estimate:
        """(B,): a value for each prompt -> their mean."""
        values = np.asarray(values, dtype=float)
        if values.shape != (len(self.prompts),):
            raise ValueError(
                f"one value per prompt has shape ({len(self.prompts)},), not {values.shape}"
            )
        return self._exactly(over_prompts(values))

    def _exactly(self, estimate: Estimate) -> Estimate:
        return Estimate(estimate.mean, math.nan) if self.enumerated else estimate


def _normalized(weights: np.ndarray) -> np.ndarray:
    """Log-probabilities of a model in float32 sum to 1 up to 1e-6 only."""
    return weights / weights.sum(-1, keepdims=True)


def _equal_weights(texts: Sequence[Sequence[str]]) -> np.ndarray:
    return np.full((len(texts), len(texts[0])), 1 / len(texts[0]))


@dataclass(frozen=True)
class Metric:
    """A number that is measured in each iteration, or one for each of several classes.

    name        its key in metrics.jsonl
    measure     (Evaluation) -> Value; None where it is not defined
    unit        such as "nats" or "tokens"
    heading     of its column: two lines; by default the name
    format      of a number in the table, as in format()
    title       of its panel, without the unit; by default the name
    log_scale   a logarithmic axis, where all values are positive
    level       a value that is marked by a line in the picture
    priority    panels of higher priority come first, columns of negative priority last; of the
                built-in metrics those with priority >= 1 stand in the table of a comparison, and
                the first three in its picture
    drawn_with  the metric whose panel, or for classes whose columns too, this one shares
    label       its name there
    line        its line style, as in matplotlib
    optional    leave its column out where it is not defined, instead of an empty one
    show_error  show the standard error in the table (the picture always has it)
    in_table    whether it has a column
    in_picture  whether it has a panel; one whose values are all equal is left out
    caption     format of a line above the picture, for a text
    """

    name: str
    measure: Callable[[Evaluation], Value]
    unit: str = ""
    heading: tuple[str, str] = ("", "")
    format: str = ".3f"
    title: str = ""
    log_scale: bool = False
    level: float | None = None
    priority: int = 0
    drawn_with: str | None = None
    label: str = ""
    line: str = "o-"
    optional: bool = False
    show_error: bool = True
    in_table: bool = True
    in_picture: bool = True
    caption: str | None = None

    def __post_init__(self) -> None:
        """Derive heading, title and label from the name where they are not given."""
        words = self.name.replace("_", " ")
        first, _, rest = words.partition(" ")
        for name, default in (("heading", (first, rest)), ("title", words), ("label", words)):
            if not any(getattr(self, name)):
                object.__setattr__(self, name, default)

    @classmethod
    def of_responses(
        cls,
        name: str,
        values: Callable[[Evaluation], np.ndarray | Sequence[Sequence[float]] | None],
        **shown: Any,
    ) -> Metric:
        """A metric from a value per response: E_{π_t}[value], with its standard error.

        `values(evaluation)` -> (B, K), or None where it is not defined; `shown` are fields.
        """
        return cls(name, _MeanOverResponses(values), **shown)

    @property
    def panel_title(self) -> str:
        """The title with the unit."""
        return f"{self.title} in {self.unit}" if self.unit else self.title


@dataclass(frozen=True)
class _MeanOverResponses:
    values: Callable[[Evaluation], np.ndarray | Sequence[Sequence[float]] | None]

    def __call__(self, evaluation: Evaluation) -> Estimate | None:
        values = self.values(evaluation)
        return None if values is None else evaluation.mean(values)


def measure_all(evaluation: Evaluation, metrics: Sequence[Metric]) -> Record:
    """{name: value, name_error: standard error} of each metric, the error where one is known.

    The errors stand in `standard_errors`, {name: error}, too, as in earlier versions.
    None stands for what is not defined or not finite. Raises InputError where a metric fails.
    """
    record: Record = {}
    errors: Record = {}
    for metric in metrics:
        try:
            record[metric.name], error = _parts(metric.measure(evaluation), metric.format)
        except Exception as error:  # a function of the user may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"metric '{metric.name}' cannot be computed: {reason}") from error
        if error is not None:
            errors[metric.name] = record[metric.name + ERROR] = error
    return record | {"standard_errors": errors}


def _parts(value: Any, form: str) -> tuple[Any, Any]:
    """A value and its standard error, as JSON has them. Raises where `form` does not suit it."""
    if value is None or isinstance(value, str):
        return value, None
    if isinstance(value, Mapping):
        parts = {str(key): _parts(each, form) for key, each in value.items()}
        errors = {key: error for key, (_, error) in parts.items() if error is not None}
        return {key: mean for key, (mean, _) in parts.items()}, errors or None
    mean, error = value if isinstance(value, Estimate) else (value, math.nan)
    if np.ndim(mean) > 0:
        raise TypeError(f"expected one number, got an array of shape {np.shape(mean)}")
    mean, error = _finite(mean), _finite(error)
    format(0 if mean is None else mean, form)
    return mean, error


def _finite(value: Any) -> float | int | None:
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


def load_metrics(named: Sequence[Any]) -> tuple[Metric, ...]:
    """The built-in metrics, and those of the user: objects, or import paths of them.

    Raises InputError where one cannot be imported, is not a Metric, or has a name in use.
    """
    found, names = list(METRICS), {*RESERVED, *(metric.name for metric in METRICS)}
    for each in named:
        metric = load_object(each, "metric", Metric) if isinstance(each, str) else each
        if not isinstance(metric, Metric):
            raise InputError(
                f"evaluation.metrics: a {type(metric).__name__} is not a Metric; give a "
                "llm.evaluation.metrics.Metric, or the import path package.module:object of one"
            )
        if metric.name in names or metric.name.removesuffix(ERROR) in names:
            raise InputError(
                f"evaluation.metrics: the name '{metric.name}' is in use; give the metric another"
            )
        names.add(metric.name)
        found.append(metric)
    return tuple(found)


# --- metrics of responses -------------------------------------------------------------------------


def _win_rate(evaluation: Evaluation) -> np.ndarray | None:
    """(B, K): P(response ≻ μ)."""
    if evaluation.preference is None:
        return None
    return against(evaluation.preference, evaluation.reference_weights)


def _kl_to_reference(evaluation: Evaluation) -> np.ndarray:
    """(B, K): an enumeration has the mean itself, samples an estimate of less variance."""
    if evaluation.kl is not None:
        return evaluation.kl
    return evaluation.logp - evaluation.logp_ref


def _self_bleu(evaluation: Evaluation) -> Estimate | None:
    """Of samples only: an enumeration holds each response once."""
    if evaluation.enumerated:
        return None
    return evaluation.mean_over_prompts([self_bleu(texts) for texts in evaluation.texts])


WIN_RATE = Metric.of_responses(
    "win_rate",
    _win_rate,
    heading=("wins", "over μ"),
    title="win rate over μ",
    level=0.5,
    priority=1,
    optional=True,
)
KL_TO_REFERENCE = Metric.of_responses(
    "kl_to_reference",
    _kl_to_reference,
    unit="nats",
    heading=("KL to", "μ"),
    title="KL to μ",
    priority=1,
)
ENTROPY = Metric.of_responses(
    "entropy",
    lambda evaluation: -evaluation.logp,
    unit="nats",
    format=".2f",
    show_error=False,
)
LENGTH = Metric.of_responses(
    "length",
    lambda evaluation: evaluation.token_counts,
    unit="tokens",
    format=".1f",
    priority=1,
    show_error=False,
)
SELF_BLEU = Metric(
    "self_bleu",
    _self_bleu,
    heading=("self-", "BLEU"),
    title="self-BLEU",
    priority=1,
    optional=True,
    show_error=False,
)


# --- metrics of the exact solution ----------------------------------------------------------------


def _kl_to_equilibrium(evaluation: Evaluation) -> Estimate | None:
    """KL(π*‖π_t)."""
    game = evaluation.exact
    if not isinstance(game, EnumeratedGame) or game.logp_star is None:
        return None
    return evaluation.mean_over_prompts(kl_divergence(game.logp_star, evaluation.logp))


def _exact_kl_to_equilibrium(evaluation: Evaluation) -> Estimate | None:
    """KL(π*‖·) of the exact iterate."""
    game = evaluation.exact
    if not isinstance(game, EnumeratedGame) or game.logp_star is None:
        return None
    iterate = game.exact_iterate(evaluation.t)
    if iterate is None:
        return None
    return evaluation.mean_over_prompts(kl_divergence(game.logp_star, iterate))


def _kl_to_exact_iterate(evaluation: Evaluation) -> Estimate | None:
    """KL(exact iterate‖π_t)."""
    game = evaluation.exact
    iterate = game.exact_iterate(evaluation.t) if isinstance(game, EnumeratedGame) else None
    if iterate is None:
        return None
    return evaluation.mean_over_prompts(kl_divergence(iterate, evaluation.logp))


def _duality_gap(evaluation: Evaluation) -> Estimate | None:
    game = evaluation.exact
    gaps = game.duality_gap(evaluation.logp) if isinstance(game, EnumeratedGame) else None
    return None if gaps is None else evaluation.mean_over_prompts(gaps)


def _styles(evaluation: Evaluation) -> dict[str, Estimate] | None:
    """The share of each style among the responses."""
    game = evaluation.exact
    if not isinstance(game, StyleGame):
        return None
    styles = game.styles(evaluation.prompts, evaluation.texts)
    return {name: evaluation.mean(styles == i) for i, name in enumerate(game.names)}


def _equilibrium_styles(evaluation: Evaluation) -> dict[str, float] | None:
    game = evaluation.exact
    if not isinstance(game, StyleGame) or game.logp_star is None:
        return None
    return dict(zip(game.names, np.exp(game.logp_star).tolist(), strict=True))


def _target(evaluation: Evaluation) -> str | None:
    game = evaluation.exact
    return None if game is None or game.logp_star is None else target_description(game.rule)


KL_TO_EQUILIBRIUM = Metric(
    "kl_to_equilibrium",
    _kl_to_equilibrium,
    unit="nats",
    heading=("KL(π*‖π_t)", "model"),
    format=".4f",
    title="KL(π*‖π_t)",
    log_scale=True,
    priority=2,
    label="model",
    optional=True,
)
EXACT_KL_TO_EQUILIBRIUM = Metric(
    "exact_kl_to_equilibrium",
    _exact_kl_to_equilibrium,
    unit="nats",
    heading=("KL(π*‖π_t)", "exact"),
    format=".4f",
    drawn_with="kl_to_equilibrium",
    label="exact iterate",
    line="--",
    optional=True,
)
KL_TO_EXACT_ITERATE = Metric(
    "kl_to_exact_iterate",
    _kl_to_exact_iterate,
    unit="nats",
    heading=("KL(exact", "‖model)"),
    format=".4f",
    title="KL(exact iterate‖π_t)",
    optional=True,
    in_picture=False,
)
DUALITY_GAP = Metric(
    "duality_gap",
    _duality_gap,
    format=".4f",
    optional=True,
)
STYLES = Metric(
    "styles",
    _styles,
    format=".2f",
    title="share of each style",
    priority=2,
    optional=True,
    show_error=False,
)
EQUILIBRIUM_STYLES = Metric(
    "equilibrium_styles",
    _equilibrium_styles,
    format=".2f",
    drawn_with="styles",
    label="π*",
    line=":",
    in_table=False,
)
TARGET = Metric("target", _target, in_table=False, in_picture=False, caption="π* is {}")


# --- the step of the rule, and what training made of it -------------------------------------------


def _of_step(which: str, mean: str, error: str = "") -> Callable[[Evaluation], Estimate | None]:
    def measure(evaluation: Evaluation) -> Estimate | None:
        step = getattr(evaluation.step, which, None)
        if step is None or math.isnan(getattr(step, mean)):
            return None
        return Estimate(getattr(step, mean), getattr(step, error, math.nan))

    return measure


ETA = Metric(
    "eta",
    lambda evaluation: None if evaluation.step is None else evaluation.step.eta,
    heading=("η asked", "for"),
    format=".3g",
    title="η of the step",
    label="asked for",
    line=":",
    optional=True,
)
CORRECTED_ETA = Metric(
    "corrected_eta",
    _of_step("corrected", "eta", "eta_error"),
    heading=("η that was", "made"),
    format=".2g",
    drawn_with="eta",
    label="made",
)
EFFECTIVE_ETA = Metric(
    "effective_eta",
    _of_step("made", "eta", "eta_error"),
    in_table=False,
    in_picture=False,
)
TAU = Metric(
    "tau",
    lambda evaluation: None if evaluation.step is None else evaluation.step.tau,
    title="τ of the step",
    label="asked for",
    line=":",
    in_table=False,
)
CORRECTED_TAU = Metric(
    "corrected_tau",
    _of_step("corrected", "tau", "tau_error"),
    drawn_with="tau",
    label="made",
    in_table=False,
)
EFFECTIVE_TAU = Metric(
    "effective_tau",
    _of_step("made", "tau", "tau_error"),
    in_table=False,
    in_picture=False,
)
EFFECTIVE_R2 = Metric(
    "effective_r_squared",
    _of_step("made", "r_squared"),
    in_table=False,
    in_picture=False,
)

# --- what training took ---------------------------------------------------------------------------

LOSS = Metric(
    "loss",
    lambda evaluation: float(np.mean(evaluation.losses)) if len(evaluation.losses) else None,
    format=".4g",
    priority=-1,
)
SECONDS = Metric(
    "seconds",
    lambda evaluation: evaluation.seconds,
    unit="s",
    format=".1f",
    priority=-1,
    in_picture=False,
)
TOKENS = Metric(
    "tokens",
    lambda evaluation: evaluation.used.get("tokens"),
    format=",d",
    title="tokens generated",
    in_table=False,
    in_picture=False,
)
COMPARISONS = Metric(
    "comparisons",
    lambda evaluation: evaluation.used.get("comparisons"),
    heading=("pairs", "judged"),
    format=",d",
    title="pairs judged",
    in_table=False,
    in_picture=False,
)

# --- what the engine sampled from -----------------------------------------------------------------


def _drift(name: str, number: Callable[[np.ndarray], float], second: str, **shown: Any) -> Metric:
    """A number of |drift|; a column where the engine reports log-probabilities."""

    def measure(evaluation: Evaluation) -> float | None:
        return float(number(np.abs(evaluation.drift))) if evaluation.drift.size else None

    return Metric(
        name,
        measure,
        unit="nats per token",
        heading=("drift", second),
        format=".2g",
        log_scale=True,
        priority=-1,
        optional=True,
        **shown,
    )


DRIFT_MEAN = _drift("drift_mean", np.mean, "mean", title="drift of the engine", label="mean")
DRIFT_99 = _drift(
    "drift_99",
    lambda drift: np.quantile(drift, 0.99),
    "99 %",
    drawn_with="drift_mean",
    label="99 %",
)
DRIFT_LARGEST = _drift("drift_largest", np.max, "largest", drawn_with="drift_mean", label="largest")

METRICS: tuple[Metric, ...] = (
    WIN_RATE,
    KL_TO_REFERENCE,
    ENTROPY,
    LENGTH,
    SELF_BLEU,
    KL_TO_EQUILIBRIUM,
    KL_TO_EXACT_ITERATE,
    DUALITY_GAP,
    LOSS,
    SECONDS,
    TOKENS,
    COMPARISONS,
    ETA,
    CORRECTED_ETA,
    EFFECTIVE_ETA,
    TAU,
    CORRECTED_TAU,
    EFFECTIVE_TAU,
    EFFECTIVE_R2,
    DRIFT_MEAN,
    DRIFT_99,
    DRIFT_LARGEST,
    EXACT_KL_TO_EQUILIBRIUM,
    STYLES,
    EQUILIBRIUM_STYLES,
    TARGET,
)
