"""Recipes trained on the same budget and compared: what `python -m llm.compare` does."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from games.errors import InputError
from llm.config.loading import load_config, split_override
from llm.config.schema import BudgetConfig, TrainConfig
from llm.data.examples import read_examples
from llm.data.prompts import PromptSet
from llm.embedded import game, resolve
from llm.evaluation.exact import EnumeratedGame
from llm.evaluation.metrics import Metric, load_metrics
from llm.evaluation.win_rates import (
    WinRates,
    evaluation_responses,
    exact_win_rates,
    sampled_win_rates,
)
from llm.policy.memory import out_of_memory
from llm.run.lifecycle import Interrupted, resumable
from llm.run.plan import print_plan
from llm.run.setup import (
    check_batches,
    checked,
    encoded,
    evaluation_prompts,
    load_judge,
    prepare,
    rule_and_fit,
    shape_of,
)
from llm.sources import source_of
from llm.sources.base import Source, TooFewItems
from llm.sources.stages import JUDGING_SETTINGS
from llm.storage.chunks import Work, World
from llm.storage.directory import RunDirectory, check_writable, next_free
from llm.storage.files import Record, read_record
from solvers import outputs

START = "start"
OF_THE_RECIPE = ("recipe", "rule", "fit")  # fields that recipes set: no overrides of them


def budget_of(base: TrainConfig, asked: int) -> BudgetConfig:
    """The budget of each recipe: as given, else the most that the base configuration can use.

    `asked`: prompts per iteration.
    """
    k, asked = base.samples_per_prompt, asked * base.iterations
    tokens = base.budget.tokens or asked * k * base.sample.max_new_tokens
    comparisons = base.budget.comparisons or asked * k * (k - 1) // 2
    return BudgetConfig(tokens=tokens, comparisons=comparisons or None)


def iterations_within(source: Source, base: TrainConfig, budget: BudgetConfig, prompts: int) -> int:
    """The iterations of a recipe that are guaranteed to fit the budget.

    A recipe that uses none of it gets as many as the base. Responses are counted at full length; if
    budget.tokens is given, at one token, since the run itself then stops by its actual usage.
    Raises InputError if not even one iteration fits.
    """
    cost = source.cost
    length = 1 if base.budget.tokens else source.config.sample.max_new_tokens
    limits = []
    for name, limit, use in (
        ("tokens", budget.tokens, prompts * cost.sampled * length),
        ("comparisons", budget.comparisons, prompts * cost.comparisons),
    ):
        if limit is not None and use > limit:
            raise InputError(
                f"budget.{name}: an iteration takes up to {use:,}, more than the {limit:,} "
                f"of the base's iterations={base.iterations}; raise iterations or budget.{name}"
            )
        if limit is not None and use > 0:
            limits.append(limit // use)
    return min(limits, default=base.iterations)


@dataclass(frozen=True)
class Entry:
    """A recipe and its run."""

    recipe: str
    config: TrainConfig

    @property
    def run(self) -> RunDirectory:
        """Its run directory."""
        return RunDirectory(Path(self.config.output_dir))

    @property
    def iterations(self) -> int:
        """How many iterations it was trained for."""
        return self.run.metrics()[-1]["iteration"]

    def _steps(self) -> int:
        each = (self.run.iteration(t) / "losses.json" for t in range(self.iterations))
        return sum(len(read_record(losses)) for losses in each)

    def record(self) -> Record:
        """Its entry in comparison.json, except for what depends on the other recipes."""

        rule, fit = rule_and_fit(self.config)
        source, rows = source_of(self.config, rule), self.run.metrics()
        regularizer, tau = rule.target
        game = "unregularized" if regularizer is None else f"{regularizer.name}, τ={tau:g}"
        metrics = [metric.name for metric in load_metrics(self.config.evaluation.metrics)]
        known = {
            "recipe": self.recipe,
            "rule": rule.name,
            "fit": fit.name,
            "target": source.target or game,
            "claims": rule.converges,
            "reaches": source.is_consistent(fit),
            "eta": rule.step_size,
            "samples_per_prompt": self.config.samples_per_prompt,
            "iterations": self.iterations,
            "optimizer_steps": self._steps(),
            "seconds": sum(row["seconds"] for row in rows),
            "run": str(self.run.path),
            "trace": [
                {name: row.get(name) for name in ("iteration", *metrics, "standard_errors")}
                for row in rows
            ],
        }
        return known | {name: rows[-1].get(name) for name in metrics if name not in known}


@dataclass(frozen=True)
class Comparison:
    """Trained recipes and their win rates; the start is the last policy of `pairwise`."""

    root: Path
    source: str
    seed: int
    budget: BudgetConfig
    entries: list[Entry]
    skipped: dict[str, str]
    pairwise: WinRates | None

    @property
    def metrics(self) -> Sequence[Metric]:
        """What the runs measure."""
        return load_metrics(self.entries[0].config.evaluation.metrics)

    def record(self) -> Record:
        """The content of comparison.json."""
        known = self.pairwise
        error = None if known is None else known.standard_error
        gaps = None if known is None else known.gaps
        rows = [
            entry.record()
            | {
                "win_rate": None if known is None else known.win_rate[i, -1],
                "win_rate_error": None if error is None else error[i, -1],
                "duality_gap": None if gaps is None else gaps[i],
            }
            for i, entry in enumerate(self.entries)
        ]
        table = known and {
            "policies": [*(entry.recipe for entry in self.entries), START],
            "win_rate": known.win_rate,
            "standard_error": error,
            "exact": error is None,
        }
        found = {
            "config": self.source,
            "seed": self.seed,
            "budget": {"tokens": self.budget.tokens, "comparisons": self.budget.comparisons},
            "recipes": rows,
            "skipped": [{"recipe": name, "reason": why} for name, why in self.skipped.items()],
            "pairwise": table,
            "versions": outputs.versions(),
        }
        return outputs.plain(found)


def compare(
    train: Callable[[TrainConfig, Console], RunDirectory],
    source: str,
    names: Sequence[str],
    words: Sequence[str],
    progress: Console,
    *,
    if_it_fits: bool = False,
) -> Comparison:
    """Trains the recipes of those names on a base configuration, each by `train(config, console)`.

    Raises InputError before anything is written, Interrupted afterwards. A recipe is left out, with
    the reason, if its loss diverges, if its selection leaves less than a batch or, with
    `if_it_fits`, if it does not fit data or judge. At least one must remain.
    """
    world = World.join(dict(os.environ))
    base, root = base_of(source, words)
    root = world.share(root)
    answer = _answers(source, names, words)
    if answer is not None:
        words = [*words, f"data.answer={answer}"]
        base = replace(base, data=replace(base.data, answer=answer))
    prompts = _prompts(base)
    asked = base.data.prompts_per_iteration or len(prompts.folds[0])
    budget = budget_of(base, asked)
    entries: list[Entry] = []
    skipped: dict[str, str] = {}
    for name in names:
        try:
            config = load_config(source, [f"recipe={name}", *words])
            trained_on, fit, _ = checked(config)
            check_batches(trained_on, fit, prompts)
            within = iterations_within(trained_on, base, budget, asked)
            place = {"output_dir": str(root / name), "fresh": False}
            config = replace(config, **place, iterations=within, budget=budget)
            print_plan(config, Console(file=io.StringIO()))  # all checks that need no weights
        except InputError as error:
            if not if_it_fits:
                raise InputError(f"recipe {name}: {error}") from None
            skipped[name] = str(error)
        else:
            entries.append(Entry(name, config))
    if not entries:
        raise InputError("; ".join(dict.fromkeys(skipped.values())))
    trained = []
    for i, entry in enumerate(entries):
        if world.is_main:
            title = f"recipe {entry.recipe}, {i + 1} of {len(entries)}"
            progress.rule(title, align="left", style="dim")
        try:
            train(entry.config, progress)
            trained.append(entry)
        except Interrupted as error:
            if not isinstance(error.__cause__, FloatingPointError | TooFewItems):
                raise
            skipped[entry.recipe] = str(error.__cause__)
    if not trained:
        raise Interrupted("; ".join(f"recipe {name}: {why}" for name, why in skipped.items()))
    known = against_each_other(root, trained, prompts, world)
    return Comparison(root, source, base.seed, budget, trained, skipped, known)


def base_of(source: str, words: Sequence[str]) -> tuple[TrainConfig, Path]:
    """The base configuration, and the directory of the comparison: runs/compare-NAME unless given.

    Raises InputError for overrides of fields that recipes set, and for a directory with a run.
    """
    given = dict(split_override(word) for word in words)
    for key in given:
        if key in OF_THE_RECIPE:
            raise InputError(f"{key}: recipes set this field; give --recipes instead")
    base = load_config(source, words)
    root = Path(base.output_dir)
    if "output_dir" not in given:
        root = root.with_name(f"compare-{root.name}")
    if base.fresh:
        root = next_free(root)
    if (root / "config.yaml").exists():
        raise InputError(f"output_dir={root}: holds a run; give another one")
    check_writable(root)
    return base, root


def _answers(source: str, names: Sequence[str], words: Sequence[str]) -> str | None:
    """The field with answers, if a recipe needs them: all recipes then read the same rows.

    Embedded data keeps answers in a separate file with other prompts in another order.
    """
    for name in names:
        try:
            config = load_config(source, [f"recipe={name}", *words])
            checked(config)
        except InputError:  # reported when this recipe is prepared
            continue
        if config.data.answer is not None:
            return config.data.answer
    return None


def _prompts(config: TrainConfig) -> PromptSet:
    known = resolve(config)
    return encoded(known, shape_of(known), read_examples(known.data))


def against_each_other(
    root: Path, entries: Sequence[Entry], prompts: PromptSet, world: World
) -> WinRates | None:
    """Win rates of the final policies and their start against each other; None without a judge.

    Exact where the game is enumerated, else from the evaluation responses of the runs, which are
    judged here and stored in output_dir/pairwise.
    """
    first = entries[0]
    if first.config.judge.kind == "none":
        return None
    if (first.config.judge.kind, first.config.judge.path) == ("embedded", "game"):
        each = [_start_and_end(entry, world) for entry in entries]
        return exact_win_rates(game.preference(), [*(end for _, end in each), each[0][0]])
    asked = evaluation_prompts(prompts)
    played = [evaluation_responses(entry.run, entry.iterations, asked) for entry in entries]
    at_reference = first.config.model.adapter is None
    played.append(evaluation_responses(first.run, None if at_reference else 0, asked))
    with resumable(RunDirectory(root)), out_of_memory("judging", JUDGING_SETTINGS):
        judge, device = load_judge(first.config)
        assert judge is not None
        work = Work(first.config.chunk_size, world)
        return sampled_win_rates(work, root / "pairwise", judge.to(device), played)


def _start_and_end(entry: Entry, world: World) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of all responses of the embedded game."""
    parts = prepare(entry.config, world)
    assert isinstance(parts.exact, EnumeratedGame)
    parts.policy.load_adapter(entry.run.path / "final")
    return parts.exact.start, parts.exact.log_probs(parts.policy)
