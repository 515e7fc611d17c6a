"""The steps of Algorithm 1 in a run directory: where each is stored, shown, and timed."""

from __future__ import annotations

import json
import logging
import resource
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from llm.chunks import World
from llm.config import TrainConfig
from llm.curves import draw_curves
from llm.data import Prompt
from llm.fitting import Rows, fit_policy
from llm.judges import JudgeError, check_preferences
from llm.report import Report, compare_responses
from llm.rundir import RunDirectory, read_json, write_directory, write_text
from llm.sampling import on_policy
from llm.setup import Parts, aims, out_of_memory
from llm.stages import Responses, Work, evaluate, judge_responses, sample_responses
from solvers.fits import Items
from solvers.rules import Update

logger = logging.getLogger(__name__)

# Streams of random numbers, by what they are for: (seed, stream, iteration, chunk).
TRAINING, EVALUATION, REFERENCE, ORDER = range(4)

SAMPLING_KNOBS = "sample.batch_size, sample.max_new_tokens, data.max_prompt_length"
JUDGING_KNOBS = "judge.batch_size, judge.max_length, or set judge.device=cpu"
TRAINING_KNOBS = (
    "train.micro_batch_size, sample.max_new_tokens, or set train.gradient_checkpointing=true"
)
METRICS = (
    "win_rate",
    "kl_to_reference",
    "entropy",
    "length",
    "self_bleu",
    "kl_to_equilibrium",
    "kl_to_exact_iterate",
    "duality_gap",
    "loss",
    "seconds",
)


@dataclass
class Session:
    """A run while it is under way."""

    config: TrainConfig
    parts: Parts
    run: RunDirectory
    world: World
    report: Report
    began: float = field(default_factory=time.monotonic)
    done: defaultdict[str, list[float]] = field(
        default_factory=lambda: defaultdict(lambda: [0.0, 0.0])
    )

    def open(self) -> range:
        """Says what is to be done, takes up what is done; the iterations that are left."""
        config, parts = self.config, self.parts
        folds = [len(fold) for fold in parts.prompts.folds]
        self.report.say(
            f"{self.run.path}: rule {parts.rule.name}, fit {parts.fit.name}, "
            f"eta {parts.rule.eta_at(0):g}, K = {config.samples_per_prompt}, "
            f"prompts {' + '.join(map(str, folds))}, {len(parts.prompts.held_out)} held out"
        )
        for line in aims(config, parts.rule, parts.fit):
            self.report.say(line)
        on_policy(config.sample)
        if parts.prompts.dropped:
            logger.info("%d prompts are too long and left out", parts.prompts.dropped)
        for row in self.run.metrics():
            self.report.row(row)
        first = self.run.trained()
        if first:
            parts.policy.load_adapter(self.run.iteration(first - 1) / "adapter")
        return range(first, config.iterations)

    def prompts(self, t: int) -> list[Prompt]:
        """The prompts of iteration t."""
        return self.parts.prompts.of_iteration(t, self.config.data.prompts_per_iteration)

    def sample(self, t: int, prompts: Sequence[Prompt]) -> Responses:
        """K responses y ∼ π_t per prompt, with log π_t and log μ."""
        directory = self.run.iteration(t) / "responses"
        return self._sample(directory, prompts, self.config.samples_per_prompt, (TRAINING, t))

    def judge(self, t: int, responses: Responses) -> np.ndarray:
        """(B, K, K): P(y_i ≻ y_j)."""
        directory = self.run.iteration(t) / "preferences"
        with self._judging(len(responses.prompts)) as (work, judge):
            preference = judge_responses(work, directory, judge, responses.prompts, responses.texts)
            if t == 0:
                self._check_judge(directory, preference, responses.texts)
        return preference

    def fit(self, t: int, responses: Responses, update: Update, items: Items) -> None:
        """π_{t+1}: π_θ fitted to the items, and its adapter stored."""
        rows = Rows(responses.completions, items, self._from_base(t, responses.prompts, update))
        settings, here = self.config.train, self.run.iteration(t)
        spare = len(rows) % settings.batch_size
        if spare and t == self.run.trained() == 0:
            self.report.say(
                f"{spare} of {len(rows)} items an iteration fill no batch and are left out"
            )
        began = time.perf_counter()
        with (
            out_of_memory("training", TRAINING_KNOBS),
            self.report.stage("fit", len(rows) // settings.batch_size * settings.epochs) as advance,
        ):
            losses = fit_policy(
                self.parts.policy,
                self.parts.fit,
                rows,
                settings,
                directory=here / "trainer",
                seed=(self.config.seed, ORDER, t),
                temperature=self.config.sample.temperature,
                world=self.world,
                on_steps=advance,
            )
        share = settings.epochs * (len(rows) - spare) / len(rows) / self.world.size
        tokens = sum(len(c) for row in rows.completions for c in row)
        self._count("tokens trained", int(tokens * share), time.perf_counter() - began)
        if self.world.is_main:
            write_text(here / "losses.json", json.dumps(losses) + "\n")
            write_directory(here / "adapter", self.parts.policy.save_adapter)
            shutil.rmtree(here / "trainer", ignore_errors=True)
        self.world.barrier()

    def measure(self, t: int) -> None:
        """The line of π_t in metrics.jsonl, and in the table."""
        if self.world.share(any(row["iteration"] == t for row in self.run.metrics())):
            return
        known, policy = self.parts.beside, self.parts.policy
        if known is not None and known.enumerated:
            measured = known.measure(policy, t, [])
        else:
            own, reference = self._evaluation(t), self._evaluation(None)
            directory = self.run.iteration(t) / "evaluation" / "preferences"
            with self._judging(len(own.prompts)) as (work, judge):
                measured = evaluate(work, directory, judge, own, reference)
            if known is not None:
                measured |= known.measure(policy, t, list(own.rows))
        losses = read_json(self.run.iteration(t - 1) / "losses.json", []) if t else []
        measured["loss"] = float(np.mean(losses)) if losses else None
        measured["seconds"] = time.monotonic() - self.began
        self.began = time.monotonic()
        row = {"iteration": t} | {name: measured.get(name) for name in METRICS} | measured
        row |= {"per_second": self._rates(), "peak_memory_gib": _peak_memory()}
        if self.world.is_main:
            self.run.add_metrics(row)
            self.report.row(row)
        self.world.barrier()

    def finish(self) -> None:
        """curves.png, then final/: the run is finished when it is there."""
        for line in self._before_and_after():
            self.report.say(line)
        rates = [f"{rate:.0f} {what}" for what, rate in self._rates().items()]
        if rates:
            self.report.say(f"per second: {', '.join(rates)}")
        self.report.say(f"peak memory: {_peak_memory():.2f} GiB")
        if self.world.is_main:
            picture = self.run.path / "curves.png"
            temporary = picture.with_suffix(".tmp")
            drawn = draw_curves(temporary, self.run.metrics())
            if drawn:
                temporary.replace(picture)
            last = self.run.iteration(self.config.iterations - 1) / "adapter"
            write_directory(
                self.run.path / "final",
                lambda temporary: shutil.copytree(last, temporary, dirs_exist_ok=True),
            )
            self.report.say(f"adapter: {self.run.path / 'final'}")
            if drawn:
                self.report.say(str(picture))
        self.world.barrier()

    def _before_and_after(self) -> list[str]:
        if self.parts.beside is not None and self.parts.beside.enumerated:
            return []
        before, after = self._evaluation(None), self._evaluation(self.config.iterations)
        return compare_responses(before.rows, after.rows)

    # ------------------------------------------------------------------ parts of the above

    def _sample(
        self,
        directory: Path,
        prompts: Sequence[Prompt],
        samples: int,
        key: Sequence[int],
        adapter: bool = True,
    ) -> Responses:
        with out_of_memory("sampling", SAMPLING_KNOBS), self._work("sample", len(prompts)) as work:
            return sample_responses(
                work,
                directory,
                self.parts.policy,
                prompts,
                samples,
                self.config.sample,
                (self.config.seed, *key),
                adapter=adapter,
            )

    def _evaluation(self, t: int | None) -> Responses:
        """Responses of π_t to the evaluation prompts; of μ without t."""
        prompts = self.parts.prompts.held_out or self.parts.prompts.folds[0][:64]
        samples = self.config.evaluation.samples
        if t is None:
            directory = self.run.path / "reference" / "evaluation"
            return self._sample(directory, prompts, samples, (REFERENCE, 0), adapter=False)
        directory = self.run.iteration(t) / "evaluation" / "responses"
        return self._sample(directory, prompts, samples, (EVALUATION, t))

    def _from_base(self, t: int, prompts: Sequence[Prompt], update: Update):
        """A response of μ per prompt and its λ, where the fit estimates forward KL from those."""
        if not getattr(self.parts.fit, "direct_forward_kl", False) or update.regularizer is None:
            return None
        lam = self.parts.fit.coefficients(update.regularizer, update.eta, update.tau)
        if "forward_kl" not in lam:
            return None
        number = t % len(self.parts.prompts.folds)
        fold = self.parts.prompts.folds[number]
        # Sampled once per fold, whatever the iterations that come back to it.
        directory = self.run.path / "reference" / f"fold-{number}"
        drawn = self._sample(directory, fold, 1, (REFERENCE, 1 + number), adapter=False)
        of = {c[0].prompt_ids: c[0] for c in drawn.completions}
        return [of[prompt.token_ids] for prompt in prompts], lam["forward_kl"]

    def _check_judge(self, directory: Path, preference: np.ndarray, texts: list) -> None:
        """Refuses a judge that tells nothing apart, before anything is trained on it."""
        try:
            check_preferences(preference, self.parts.judge.name, texts)
        except JudgeError:
            self.world.barrier()
            if self.world.is_main:  # its tables are worth nothing: another judge starts anew
                shutil.rmtree(directory)
            raise

    @contextmanager
    def _judging(self, prompts: int):
        with (
            out_of_memory("judging", JUDGING_KNOBS),
            self.parts.judging() as judge,
            self._work("judge", prompts) as work,
        ):
            yield work, judge

    @contextmanager
    def _work(self, name: str, prompts: int) -> Iterator[Work]:
        own = -(-prompts // self.world.size)
        with self.report.stage(name, own) as advance:
            yield Work(self.config.chunk_size, self.world, advance, self._count)

    def _count(self, what: str, amount: float, seconds: float) -> None:
        total = self.done[what]
        total[0] += amount
        total[1] += seconds

    def _rates(self) -> dict[str, float]:
        return {what: n / seconds for what, (n, seconds) in self.done.items() if seconds > 0}


def _peak_memory() -> float:
    """GiB: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
