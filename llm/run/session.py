"""A run under way: which iterations are left, and what each step of Algorithm 1 stores."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from games.errors import InputError
from llm.config.schema import TrainConfig
from llm.data.examples import Prompt
from llm.evaluation.curves import draw_curves
from llm.evaluation.exact import EnumeratedGame, target_description
from llm.evaluation.metrics import Evaluation, StepMade, load_metrics, measure_all
from llm.evaluation.report import Report, compare_responses, rates_line
from llm.policy.fitting import FitDataset, fit_policy
from llm.policy.interrupts import check_interrupted
from llm.policy.log_probs import PromptResponse
from llm.policy.memory import out_of_memory, peak_memory
from llm.run.budget import Budget
from llm.run.setup import Parts, evaluation_prompts, target_lines
from llm.run.tracking import Tracking
from llm.sampling.drift import drift_of
from llm.sampling.engine import on_policy
from llm.sampling.responses import Responses
from llm.sources.base import TooFewItems
from llm.sources.stages import EVALUATION, ORDER, REFERENCE, SAMPLING_SETTINGS, USED, Stages
from llm.storage.chunks import World
from llm.storage.directory import RunDirectory
from llm.storage.files import Record, read_record, write_directory, write_record
from solvers.effective_step import EffectiveStep, effective_step
from solvers.fits import Items
from solvers.plays import Plays
from solvers.update import Update

logger = logging.getLogger(__name__)

TRAINING_SETTINGS = (
    "train.micro_batch_size, sample.max_new_tokens, or set train.gradient_checkpointing=true"
)

STEP_PROMPTS = 64  # on whose responses the effective step is measured


@dataclass
class Session:
    """The steps of Algorithm 1 in a run directory."""

    config: TrainConfig
    parts: Parts
    run: RunDirectory
    world: World
    report: Report
    tracking: Tracking
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Set up what the run computes with, and its budget."""
        parts = self.parts
        self.stages = Stages(
            self.config,
            parts.policy,
            parts.engine,
            parts.prompts,
            parts.judge,
            parts.judge_device,
            self.run,
            self.world,
            self.report,
        )
        self.budget = Budget(self.config.budget, self.run)
        self.metrics = load_metrics(self.config.evaluation.metrics)

    def iterations(self) -> Iterator[int]:
        """The iterations that are left, each with the policy at π_t.

        Prints what the run does, and the rows of the table that are stored.
        """
        config, parts = self.config, self.parts
        folds = [len(fold) for fold in parts.prompts.folds]
        self.report.say(
            f"{self.run.path}: rule {parts.rule.name}, fit {parts.fit.name}, "
            f"eta {parts.rule.eta_at(0):g}, {parts.source.description}, "
            f"prompts {' + '.join(map(str, folds))}, {len(parts.prompts.held_out)} held out"
        )
        for line in target_lines(parts.source, parts.fit):
            self.report.say(line)
        if parts.exact is not None and parts.exact.logp_star is not None:
            self.report.say(f"π* is {target_description(parts.rule)}")
        on_policy(config.sample)
        if parts.prompts.dropped:
            logger.info("%d prompts are too long and left out", parts.prompts.dropped)
        for row in self.run.metrics():
            self.report.row(row)
        first = self.run.trained()
        for t in range(first if self.world.is_main else 0):  # left by a run killed before cleaning
            shutil.rmtree(self.run.iteration(t) / "trainer", ignore_errors=True)
        if first:
            self._load(self.run.adapter(first))
        for t in range(first, config.iterations):
            check_interrupted()
            if exceeded := self.budget.exceeded(t):
                self.report.say(exceeded)
                return
            self.stages.used = dict.fromkeys(USED, 0)
            yield t

    def _load(self, adapter: Path) -> None:
        """Raises InputError that says how to train a damaged adapter again."""
        try:
            self.parts.policy.load_adapter(adapter)
        except InputError as error:
            raise InputError(
                f"{error}: the adapter of this run is damaged; delete {adapter} to train it again"
            ) from error

    def plays(self, t: int, responses: Responses, preference: np.ndarray | None) -> Plays:
        """The finite game of the responses, with what the rule needs of past iterates."""
        source, magnet = self.parts.source, self.parts.rule.magnet(t)
        past = {
            s: self.stages.log_probs_under(t, s, responses) for s in source.required_iterates(t)
        }
        fields = {
            "length": responses.lengths.astype(float),
            **responses.proposal,
            **source.measure_fields(t, past),
        }
        logp_ref = past[magnet] if magnet else responses.logp_ref
        return source.game(preference, responses.logp, logp_ref, **fields)

    def fit(self, t: int, responses: Responses, plays: Plays, update: Update, items: Items) -> None:
        """π_{t+1}: π_θ fitted to the items, and its adapter stored."""
        from_reference = self._reference_responses(t, responses.prompts, update)
        rows = FitDataset(responses.completions, items, from_reference)
        settings, here = self.config.train, self.run.iteration(t)
        if len(rows) < items.weight.size:
            self.report.say(
                f"t = {t}: {items.weight.size - len(rows)} of {items.weight.size} items have zero "
                "weight and are skipped"
            )
        if len(rows) < settings.batch_size:
            raise TooFewItems(
                f"train.batch_size={settings.batch_size}: iteration {t} has only {len(rows)} items "
                "left to train on; lower it in a new run, or check that the judge distinguishes "
                "responses"
            )
        spare = len(rows) % settings.batch_size
        if spare and t == self.run.trained() == 0:
            self.report.say(
                f"{spare} of {len(rows)} items per iteration do not fill a batch and are skipped"
            )
        began = time.perf_counter()
        steps = len(rows) // settings.batch_size * settings.epochs
        with (
            out_of_memory("training", TRAINING_SETTINGS),
            self.report.stage("fit", steps) as advance,
        ):
            losses = fit_policy(
                self.parts.policy,
                self.parts.fit,
                rows,
                settings,
                directory=here / "trainer",
                seed=(self.config.seed, ORDER, t),
                start=float(np.mean(self.parts.fit.loss_on(items, responses.logp))),
                temperature=self.config.sample.temperature,
                world=self.world,
                on_steps=advance,
                on_logs=lambda step, logs: self.tracking.step(t, step, logs),
            )
        share = settings.epochs * (len(rows) - spare) / len(rows) / self.world.size
        tokens = sum(len(c) for row in rows.completions for c in row)
        self.stages.count("tokens trained", int(tokens * share), time.perf_counter() - began)
        made = self._steps_made(responses, plays, update)
        if self.world.is_main:
            write_record(here / "losses.json", losses)
            write_record(here / "effective_step.json", made)
            self.budget.record(t, self.stages.used)
            write_directory(here / "adapter", self.parts.policy.save_adapter)
            shutil.rmtree(here / "trainer", ignore_errors=True)
        self.world.barrier()
        self.parts.policy.adapter = self.run.adapter(t + 1)

    def _steps_made(self, responses: Responses, plays: Plays, update: Update) -> Record:
        """The η and τ by which π_θ was moved, measured on the responses to the first prompts."""
        if update.eta == math.inf:
            return {}
        part = [c for row in responses.completions[:STEP_PROMPTS] for c in row]
        settings, began = self.config.sample, time.perf_counter()
        with out_of_memory("computing log-probabilities", SAMPLING_SETTINGS):
            found = self.parts.policy.log_probs(
                part, batch_size=settings.batch_size, temperature=settings.temperature
            )
        self.stages.count("tokens scored", sum(map(len, part)), time.perf_counter() - began)
        logp = np.full(responses.logp.shape, np.nan)  # what is not finite is left out
        logp[:STEP_PROMPTS] = found.view(-1, responses.logp.shape[1]).numpy()
        steps = {
            name: effective_step(self.parts.rule, plays, update, logp, corrected=corrected)
            for name, corrected in (("made", False), ("corrected", True))
        }
        return {name: asdict(step) for name, step in steps.items() if step is not None}

    def measure(self, t: int) -> None:
        """The line of π_t in metrics.jsonl, and in the table."""
        if self.world.share(any(row["iteration"] == t for row in self.run.metrics())):
            return
        evaluation = self._evaluation(t)
        row = {"iteration": t} | measure_all(evaluation, self.metrics)
        row |= {"per_second": self.stages.rates(), "peak_memory_gib": peak_memory()}
        if self.world.is_main:
            self.run.add_metrics(row)
            self.report.row(row)
            self.tracking.iteration(row, evaluation)
        self.world.barrier()

    def finish(self) -> None:
        """curves.png, then final/: the run is finished when it is there."""
        check_interrupted()
        for line in self._before_and_after():
            self.report.say(line)
        if rates := self.stages.rates():
            self.report.say(rates_line(rates))
        self.report.say(f"peak memory: {peak_memory():.2f} GiB")
        if self.world.is_main:
            picture = self.run.path / "curves.png"
            drawn = draw_curves(picture, self.run.metrics(), self.metrics)
            last = self.run.adapter(self.run.trained())
            write_directory(
                self.run.path / "final",
                lambda temporary: shutil.copytree(last, temporary, dirs_exist_ok=True),
            )
            self.report.say(f"adapter: {self.run.path / 'final'}")
            if drawn:
                self.report.say(str(picture))
        self.world.barrier()

    def _before_and_after(self) -> list[str]:
        if isinstance(self.parts.exact, EnumeratedGame):
            return []
        last = self.run.trained()
        before, after = self._evaluation_responses(None), self._evaluation_responses(last)
        return compare_responses(before.rows, after.rows)

    def _evaluation(self, t: int) -> Evaluation:
        """What the metrics of π_t are computed from. The policy is π_t."""
        exact, losses = self.parts.exact, self.run.iteration(t - 1) / "losses.json"
        known = {"t": t, "losses": read_record(losses) if t else []}
        known["used"] = self.budget.used_before(t)
        known["step"] = self._step_made(t)
        trained = self.stages.training_drift(t - 1) if t else np.zeros(0)
        if isinstance(exact, EnumeratedGame):
            found = Evaluation.of_all_responses(exact, self.parts.policy, drift=trained, **known)
        else:
            own, reference = self._evaluation_responses(t), self._evaluation_responses(None)
            preference = None
            if self.parts.judge is not None:
                directory = self.run.iteration(t) / "evaluation" / "preferences"
                both = [o + r for o, r in zip(own.texts, reference.texts, strict=True)]
                k = own.logp.shape[1]
                preference = self.stages.preferences(directory, own.prompts, both)[:, :k, k:]
            known["drift"] = np.concatenate([trained, drift_of(own.rows)])
            found = Evaluation.of_samples(own, reference, preference, exact=exact, **known)
        began, self.began = self.began, time.monotonic()
        return replace(found, seconds=self.began - began)

    def _step_made(self, t: int) -> StepMade:
        """The step to π_t; of the first one only what it should be at t = 0."""
        rule = self.parts.rule
        stored = self.run.iteration(t - 1) / "effective_step.json"
        # Iterations of earlier versions have none.
        steps = read_record(stored) if t and stored.exists() else {}
        return StepMade(
            eta=rule.eta_at(max(t - 1, 0)),
            tau=rule.tau if rule.regularized else None,
            **{name: EffectiveStep(**step) for name, step in steps.items()},
        )

    def _evaluation_responses(self, t: int | None) -> Responses:
        """Responses of π_t to the evaluation prompts; of μ without t."""
        prompts = evaluation_prompts(self.parts.prompts)
        samples, stages = self.config.evaluation.samples, self.stages
        if t is None:
            directory = self.run.path / "reference" / "evaluation"
            return stages.sample(directory, prompts, samples, (REFERENCE, 0), None, reference=True)
        directory = self.run.iteration(t) / "evaluation" / "responses"
        adapter = stages.iterates.adapter(t)
        first = stages.is_reference(t)  # and the KL divergence is 0
        return stages.sample(
            directory, prompts, samples, (EVALUATION, t), adapter, reference=first, kl=not first
        )

    def _reference_responses(
        self, t: int, prompts: Sequence[Prompt], update: Update
    ) -> tuple[list[PromptResponse], float] | None:
        """A response of μ per prompt and its λ, where the fit estimates forward KL from those."""
        lam = self.parts.fit.reference_coefficient(update)
        if lam is None:
            return None
        number = t % len(self.parts.prompts.folds)
        fold = self.parts.prompts.folds[number]
        # Sampled once per fold, for all iterations that use the fold.
        directory = self.run.path / "reference" / f"fold-{number}"
        key = (REFERENCE, 1 + number)
        drawn = self.stages.sample(directory, fold, 1, key, None, reference=True)
        of = {c[0].prompt_ids: c[0] for c in drawn.completions}
        return [of[prompt.token_ids] for prompt in prompts], lam
