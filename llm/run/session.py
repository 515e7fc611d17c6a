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

from llm.config.schema import TrainConfig
from llm.data.examples import Prompt
from llm.evaluation.curves import draw_curves
from llm.evaluation.exact import aim
from llm.evaluation.measure import describe, evaluate
from llm.evaluation.report import Report, compare_responses
from llm.judges.model import Judge
from llm.judges.preferences import JudgeError, check_preferences
from llm.judges.stored import comparisons, judge_responses, select_responses
from llm.policy.fitting import FitDataset, fit_policy
from llm.policy.iterates import REMEMBERED, Iterates, required_iterates
from llm.run.setup import CHOSEN, Parts, aims, evaluation_prompts, out_of_memory, plays_of
from llm.sampling.engine import on_policy
from llm.sampling.proposals import Samplers
from llm.sampling.responses import (
    Draw,
    Responses,
    add_log_probs,
    beside_answers,
    draw_responses,
    log_probs_under,
    policy_draw,
    sample_responses,
)
from llm.storage.chunks import Work, World
from llm.storage.directory import RunDirectory
from llm.storage.files import Record, read_json, write_directory, write_text
from solvers.fits import Items
from solvers.plays import Plays, recalled
from solvers.rules import Update

logger = logging.getLogger(__name__)

# Streams of random numbers, by what they are for: (seed, stream, iteration, chunk).
TRAINING, EVALUATION, REFERENCE, ORDER, SHARES, SAMPLER = range(6)


SAMPLING_KNOBS = "sample.batch_size, sample.max_new_tokens, data.max_prompt_length"


JUDGING_KNOBS = "judge.batch_size, judge.max_length, or set judge.device=cpu"


TRAINING_KNOBS = (
    "train.micro_batch_size, sample.max_new_tokens, or set train.gradient_checkpointing=true"
)


USED = ("tokens", "comparisons")  # what a budget counts


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
    *USED,
)


class TooFewItems(RuntimeError):
    """A selection left less than a batch: continuing the run would come to the same end."""


@dataclass
class Session:
    """A run while it is under way."""

    config: TrainConfig
    parts: Parts
    run: RunDirectory
    world: World
    report: Report
    used: dict[str, int] = field(default_factory=dict)  # by the iteration under way
    began: float = field(default_factory=time.monotonic)
    done: defaultdict[str, list[float]] = field(
        default_factory=lambda: defaultdict(lambda: [0.0, 0.0])
    )

    @property
    def history(self) -> Iterates:
        """The iterates so far."""
        return Iterates(self.run, self.parts.policy, self.config.model.adapter)

    def open(self) -> Iterator[int]:
        """Says what is to be done, takes up what is done; the iterations that are left."""
        config, parts = self.config, self.parts
        folds = [len(fold) for fold in parts.prompts.folds]
        given = config.data.rejected is not None
        drawn = "given pairs" if given else f"K = {config.samples_per_prompt}"
        self.report.say(
            f"{self.run.path}: rule {parts.rule.name}, fit {parts.fit.name}, "
            f"eta {parts.rule.eta_at(0):g}, {drawn}, "
            f"prompts {' + '.join(map(str, folds))}, {len(parts.prompts.held_out)} held out"
        )
        for line in aims(config, parts.rule, parts.fit):
            self.report.say(line)
        if parts.beside is not None and parts.beside.logp_star is not None:
            self.report.say(f"π* is {aim(parts.rule)}")
        on_policy(config.sample)
        if parts.prompts.dropped:
            logger.info("%d prompts are too long and left out", parts.prompts.dropped)
        for row in self.run.metrics():
            self.report.row(row)
        first = self.run.trained()
        for t in range(first if self.world.is_main else 0):  # of a run killed just before that
            shutil.rmtree(self.run.iteration(t) / "trainer", ignore_errors=True)
        if first:
            parts.policy.load_adapter(self.run.adapter(first))
        for t in range(first, config.iterations):
            if over := self._over_budget(t):
                self.report.say(over)
                return
            self.used = dict.fromkeys(USED, 0)
            yield t

    def prompts(self, t: int) -> list[Prompt]:
        """The prompts of iteration t."""
        return self.parts.prompts.of_iteration(t, self.config.data.prompts_per_iteration)

    def respond(self, t: int) -> Responses:
        """K responses y ∼ π_t per prompt, with log π_t and log μ.

        For rules that learn from data: its answer before K draws of the past iterates that the
        rule remembers. For given pairs: those.
        """
        directory, prompts = self.run.iteration(t) / "responses", self.prompts(t)
        if self.parts.rule.needs_data:
            pooled = range(t, max(t - self.config.pooled_iterations, -1), -1)
            drawn = [row for u in pooled for row in self._draw(u, t)]
            prompts = [prompt for u in pooled for prompt in self.prompts(u)]
            return self._score(directory, beside_answers(prompts, drawn))
        if self.config.data.rejected is not None:
            return self._score(directory, beside_answers(prompts, [[] for _ in prompts]))
        k = self.config.samples_per_prompt
        with self._drawing(t, t) as draw:
            sampled = self._sample(directory, prompts, k, (TRAINING, t), draw=draw)
        self.used["tokens"] = int(sampled.lengths.sum())
        return sampled

    def judge(self, t: int, responses: Responses) -> tuple[Responses, np.ndarray | None]:
        """The responses to train on and (B, K, K) P(y_i ≻ y_j); none beside answers of the data."""
        if self.parts.rule.needs_data:
            return responses, None
        if self.config.data.rejected is not None:
            return responses, np.broadcast_to(CHOSEN, (len(responses.rows), *CHOSEN.shape))
        if self.config.selection is not None:
            return self._select(t, responses, self.config.selection)
        directory = self.run.iteration(t) / "preferences"
        with self._judging(len(responses.prompts)) as (work, judge):
            preference = judge_responses(work, directory, judge, responses.prompts, responses.texts)
            if t == 0:
                self._check_judge(judge.name, directory, preference, responses.texts)
        b, k, _ = preference.shape
        self.used["comparisons"] = b * comparisons(k)
        return responses, preference

    def plays(self, t: int, responses: Responses, preference: np.ndarray | None) -> Plays:
        """The finite game that the responses are, under μ or what takes its place."""
        rule, magnet = self.parts.rule, self.parts.rule.magnet(t)
        past = {s: self._under(t, s, responses) for s in required_iterates(rule, t)}
        logp_ref = past[magnet] if magnet else responses.logp_ref
        known = {"length": responses.lengths.astype(float), **responses.proposal}
        if "previous" in rule.needs:
            known["logp_previous"] = past[max(t - 1, 0)]
        if REMEMBERED & set(rule.needs) and not rule.needs_data:
            known |= recalled([past[s] for s in rule.remembered(t)])
        return plays_of(preference, responses.logp, logp_ref, self.config.diagonal, **known)

    def fit(self, t: int, responses: Responses, update: Update, items: Items) -> None:
        """π_{t+1}: π_θ fitted to the items, and its adapter stored."""
        rows = FitDataset(
            responses.completions, items, self._from_base(t, responses.prompts, update)
        )
        settings, here = self.config.train, self.run.iteration(t)
        if len(rows) < items.weight.size:
            self.report.say(
                f"t = {t}: {items.weight.size - len(rows)} of {items.weight.size} items carry no "
                "weight and are left out"
            )
        if len(rows) < settings.batch_size:
            raise TooFewItems(
                f"train.batch_size={settings.batch_size}: iteration {t} has only {len(rows)} items "
                "left to train on; lower it in a new run, or see that the judge tells responses "
                "apart"
            )
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
            write_text(here / "used.json", json.dumps(self.used) + "\n")
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
            measured = describe(own)
            if self.parts.judge is not None:
                directory = self.run.iteration(t) / "evaluation" / "preferences"
                with self._judging(len(own.prompts)) as (work, judge):
                    measured = evaluate(work, directory, judge, own, reference)
            if known is not None:
                measured |= known.measure(policy, t, list(own.rows))
        losses = read_json(self.run.iteration(t - 1) / "losses.json", []) if t else []
        measured["loss"] = float(np.mean(losses)) if losses else None
        measured["seconds"] = time.monotonic() - self.began
        measured |= self._used_before(t)
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
        if self.parts.beside is not None and self.parts.beside.enumerated:
            return []
        before, after = self._evaluation(None), self._evaluation(self.run.trained())
        return compare_responses(before.rows, after.rows)

    # ------------------------------------------------------------------ parts of the above

    def _draw(self, u: int, t: int) -> list[list[Record]]:
        """(B, K): draws for the prompts of iteration u; the policy is π_t before and after.

        Each comes from one of the iterates that the rule remembered, in equal shares by lot.
        """
        prompts, k = self.prompts(u), self.config.samples_per_prompt
        remembered, seed = self.parts.rule.remembered(u), self.config.seed
        lot = np.random.default_rng((seed, SHARES, u)).permutation(len(prompts) * k)
        iterate = np.array(remembered)[lot % len(remembered)]
        drawn: list[Record] = [{}] * len(iterate)
        for s in sorted(set(remembered)):
            places = np.flatnonzero(iterate == s)
            with (
                self.history.acting(s, t),
                self._drawing(u, s) as draw,
                out_of_memory("sampling", SAMPLING_KNOBS),
                self._work("sample", len(places)) as work,
            ):
                directory = self.run.iteration(u) / "drawn" / f"{s:03d}"
                asked = [prompts[place // k] for place in places]
                rows = draw_responses(work, directory, draw, asked, (seed, TRAINING, u, s))
            for place, row in zip(places, rows, strict=True):
                drawn[place] = row
        if u == t:
            self.used["tokens"] = sum(len(row["tokens"][0]) for row in drawn)
        return [drawn[first : first + k] for first in range(0, len(drawn), k)]

    @contextmanager
    def _drawing(self, u: int, s: int) -> Iterator[Draw]:
        """How iteration u draws from π_s, which the policy is."""
        parts, config = self.parts, self.config
        if self.history.adapter(s) is None:  # μ, mixed with itself
            yield policy_draw(parts.policy, config.sample, adapter=False)
            return
        samplers = Samplers(config, parts.policy, self.world, self.report)
        share = parts.rule.share(parts.rule.eta_at(u))
        directory = self.run.iteration(u) / "sampler" / f"{s:03d}"
        key = config.seed, SAMPLER, u, s
        with samplers.drawing(share, self.prompts(u), directory, key) as draw:
            yield draw

    def _score(self, directory: Path, responses: Responses) -> Responses:
        """The same with log π_t and log μ."""
        with (
            out_of_memory("scoring", SAMPLING_KNOBS),
            self._work("score", len(responses.rows)) as work,
        ):
            settings = self.config.sample
            return add_log_probs(work, directory, self.parts.policy, responses, settings)

    def _under(self, t: int, s: int, responses: Responses) -> np.ndarray:
        """(B, K): log π_s of what iteration t trains on."""
        if s == t:
            return responses.logp
        if self.history.adapter(s) is None:
            return responses.logp_ref
        directory = self.run.iteration(t) / "under" / f"{s:03d}"
        with (
            out_of_memory("scoring", SAMPLING_KNOBS),
            self._work("score", len(responses.rows)) as work,
            self.history.acting(s, t),
        ):
            settings = self.config.sample
            return log_probs_under(work, directory, self.parts.policy, responses, settings)

    def _select(self, t: int, responses: Responses, how: str) -> tuple[Responses, np.ndarray]:
        """Best and worst of the K, where the best beats the worst, and what it wins."""
        directory = self.run.iteration(t) / "selection"
        with self._judging(len(responses.prompts)) as (work, judge):
            texts = responses.texts
            rows = select_responses(work, directory, judge, responses.prompts, texts, how)
        self.used["comparisons"] = sum(row["comparisons"] for row in rows)
        passed = [b for b, row in enumerate(rows) if row["passed"]]
        if len(passed) < len(rows):
            lost = len(rows) - len(passed)
            self.report.say(
                f"t = {t}: the best response does not beat the worst for {lost} of {len(rows)} "
                "prompts, which are left out"
            )
        if not passed:
            raise TooFewItems(
                f"judge {self.config.judge.path}: the best response beats the worst for no prompt "
                f"of iteration {t}; see that it tells responses apart"
            )
        p = np.array([rows[b]["preference"] for b in passed])
        table = np.stack([np.full_like(p, 0.5), p, 1 - p, np.full_like(p, 0.5)], axis=-1)
        ends = [(row["best"], row["worst"]) for row in rows]
        return responses.pick(passed, ends), table.reshape(-1, 2, 2)

    def _used_before(self, t: int) -> dict[str, int]:
        """Tokens sampled and pairs compared for training in iterations 0, …, t − 1."""
        used = [read_json(self.run.iteration(u) / "used.json", {}) for u in range(t)]
        return {what: sum(each.get(what, 0) for each in used) for what in USED}

    def _over_budget(self, t: int) -> str | None:
        """Why iteration t is not begun: another as long as the last would exceed a budget."""
        if t == 0:
            return None
        so_far, before = self._used_before(t), self._used_before(t - 1)
        for what in USED:
            limit, next_total = getattr(self.config.budget, what), 2 * so_far[what] - before[what]
            if limit is not None and next_total > limit:
                return (
                    f"budget.{what}={limit}: {so_far[what]} are used after {t} iterations, and "
                    f"another would come to {next_total}; the run ends here"
                )
        return None

    def _sample(
        self,
        directory: Path,
        prompts: Sequence[Prompt],
        samples: int,
        key: Sequence[int],
        adapter: bool = True,
        draw: Draw | None = None,
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
                draw=draw,
            )

    def _evaluation(self, t: int | None) -> Responses:
        """Responses of π_t to the evaluation prompts; of μ without t."""
        prompts = evaluation_prompts(self.parts.prompts)
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

    def _check_judge(self, name: str, directory: Path, preference: np.ndarray, texts: list) -> None:
        """Refuses a judge that tells nothing apart, before anything is trained on it."""
        try:
            check_preferences(preference, name, texts)
        except JudgeError:
            self.world.barrier()
            if self.world.is_main:  # its tables are worth nothing: another judge starts anew
                shutil.rmtree(directory)
            raise

    @contextmanager
    def _judging(self, prompts: int) -> Iterator[tuple[Work, Judge]]:
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
