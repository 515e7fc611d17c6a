"""Recipes side by side on a model: `python -m llm.compare`.

Every recipe of llm/recipes.yaml changes rule and fit of one base configuration. All train from the
same start, on the same prompts, with the same judge and seed, each in a run directory of its own,
output_dir/RECIPE; the same command continues what was stopped. Then one table, the win rates of the
final policies against each other, comparison.json and comparison.png.

Held equal is what costs: nobody generates more than `budget.tokens` tokens in training, nobody asks
the judge about more than `budget.comparisons` pairs of responses (both orders of a pair are one).
What a GFlowNet draws for its own training is not counted.
Unless given they are what the base configuration takes at most: iterations × prompts × K responses
of sample.max_new_tokens each, and all K(K − 1)/2 pairs of each prompt. A recipe then trains for as
many whole iterations as surely fit into both, so that one with K = 8 gets 5/8 of the iterations
that K = 5 gets, although its tournament asks for 11 pairs instead of 28: tokens bind. One that asks
for no pairs is bound by tokens alone, one that generates nothing takes the base's `iterations`.
Under a given budget.tokens a run goes on until what it has generated leaves no room for another
iteration, so short responses buy iterations. Equal are neither optimizer steps nor seconds: the
table has the seconds, and the JSON all the rest.

comparison.json, which --json gives as well:
    config, seed, budget {tokens, comparisons}, versions
    recipes   a list, in the order of the table, of {recipe, rule, fit, target (the game whose
              equilibrium is aimed at), claims (the iterate that is claimed to converge to it),
              reaches (whether the fit follows the rule on samples: false for a selection of them
              and for labels that say who wins but not how often), eta, samples_per_prompt,
              iterations, win_rate and win_rate_error (over the start), kl_to_reference, entropy,
              length, self_bleu, kl_to_equilibrium (of that game), duality_gap (of the plain game),
              loss, tokens, comparisons, optimizer_steps, seconds (of evaluation, too), run, trace};
              trace is a list, one for each iterate, of {iteration, tokens,
              comparisons, win_rate (over μ), kl_to_reference, kl_to_equilibrium, length}.
              null is what is not known
    skipped   a list of {recipe, reason}
    pairwise  {policies, win_rate, standard_error, exact}: win_rate[a][b] is how often policies[a]
              wins over policies[b]; null without a judge. The last policy is the start
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console

from games.errors import InputError
from llm.config.loading import load_config, shipped_configs, split_override
from llm.config.recipes import describe_recipes, recipes, with_recipe
from llm.config.schema import BudgetConfig, TrainConfig
from llm.storage.chunks import World
from llm.storage.directory import RunDirectory, check_writable, next_free
from llm.storage.files import Record, read_json
from llm.train import Interrupted, be_quiet, continued_later, fail, train
from solvers import outputs
from solvers.__main__ import Parser

if TYPE_CHECKING:
    import numpy as np

    from llm.data.prompts import PromptSet
    from llm.evaluation.win_rates import Pairwise
    from solvers.rules import UpdateRule

DEFAULT_CONFIG = "embedded-game"
DEFAULT_ITERATIONS = 6  # of it: some minutes for these
DEFAULT_RECIPES = (
    "sppo", "rspo", "inpo", "nash_md", "optimistic", "mnpo", "moving_dpo", "spin"
)  # fmt: skip
START = "start"
OF_THE_RECIPE = ("recipe", "rule", "fit")  # what the words cannot change
PLAIN_WIDTH = 180  # of tables that go to a file or a pipe
LAST = (
    "kl_to_reference", "entropy", "length", "self_bleu", "kl_to_equilibrium", "loss", "tokens",
    "comparisons",
)  # fmt: skip
TRACED = (
    "iteration", "tokens", "comparisons", "win_rate", "kl_to_reference", "kl_to_equilibrium",
    "length",
)  # fmt: skip


# ------------------------------------------------------------------ the same budget


def budget_of(base: TrainConfig, asked: int) -> BudgetConfig:
    """What each recipe may use: what is given, else what the base configuration takes at most.

    `asked`: prompts of an iteration.
    """
    k, asked = base.samples_per_prompt, asked * base.iterations
    tokens = base.budget.tokens or asked * k * base.sample.max_new_tokens
    comparisons = base.budget.comparisons or asked * k * (k - 1) // 2
    return BudgetConfig(tokens=tokens, comparisons=comparisons or None)


def iterations_within(
    config: TrainConfig,
    rule: UpdateRule,
    base: TrainConfig,
    budget: BudgetConfig,
    prompts: PromptSet,
) -> int:
    """How many iterations of a recipe a budget allows; of what takes nothing as many as the base's.

    Raises InputError where it is none. Responses are counted at full length; under budget.tokens as
    given at one token, for there the run itself stops by what it really took.
    """
    from llm.run.plan import uses_of

    uses = uses_of(config, rule, prompts)
    length = 1 if base.budget.tokens else config.sample.max_new_tokens
    limits = []
    for name, limit, use in (
        ("tokens", budget.tokens, uses.sampled * length),
        ("comparisons", budget.comparisons, uses.comparisons),
    ):
        if limit is not None and use > limit:
            raise InputError(
                f"budget.{name}: an iteration takes up to {use:,}, and the base's iterations="
                f"{base.iterations} come to {limit:,}; raise iterations, or give budget.{name}"
            )
        if limit is not None and use > 0:
            limits.append(limit // use)
    return min(limits, default=base.iterations)


# ------------------------------------------------------------------ what is compared


@dataclass(frozen=True)
class Entry:
    """A recipe and its run."""

    recipe: str
    config: TrainConfig

    @property
    def run(self) -> RunDirectory:
        """Where it trains."""
        return RunDirectory(Path(self.config.output_dir))

    @property
    def iterations(self) -> int:
        """How many it trained for."""
        return self.run.metrics()[-1]["iteration"]

    def _steps(self) -> int:
        each = (self.run.iteration(t) / "losses.json" for t in range(self.iterations))
        return sum(len(read_json(losses, [])) for losses in each)

    def record(self) -> Record:
        """What is known of it without the others."""
        from llm.run.setup import rule_and_fit
        from solvers.tables import step_size

        rule, fit = rule_and_fit(self.config)
        rows = self.run.metrics()
        regularizer, tau = rule.target
        game = "unregularised" if regularizer is None else f"{regularizer.name}, τ={tau:g}"
        given = self.config.data.rejected is not None
        learnt = "the given pairs" if given else "the answers" if rule.needs_data else None
        return {
            "recipe": self.recipe,
            "rule": rule.name,
            "fit": fit.name,
            "target": learnt or game,
            "claims": rule.claims,
            "reaches": rule.needs_data
            or (fit.reaches(sampled=True) and self.config.selection is None),
            "eta": step_size(rule),
            "samples_per_prompt": self.config.samples_per_prompt,
            "iterations": self.iterations,
            **{name: rows[-1].get(name) for name in LAST},
            "optimizer_steps": self._steps(),
            "seconds": sum(row["seconds"] for row in rows),
            "run": str(self.run.path),
            "trace": [{name: row.get(name) for name in TRACED} for row in rows],
        }


@dataclass(frozen=True)
class Comparison:
    """Recipes that were trained; the start comes last among the policies of `pairwise`."""

    root: Path
    source: str
    seed: int
    budget: BudgetConfig
    entries: list[Entry]
    skipped: dict[str, str]
    pairwise: Pairwise | None

    def record(self) -> Record:
        """What comparison.json holds."""
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
    source: str,
    names: Sequence[str],
    words: Sequence[str],
    progress: Console,
    *,
    if_it_fits: bool = False,
) -> Comparison:
    """Trains the recipes of those names on a base configuration.

    Raises InputError before anything is written, Interrupted afterwards. Left out with the reason
    is a recipe whose loss explodes or whose selection leaves less than a batch and, on
    `if_it_fits`, one that does not fit data or judge; one at least must remain.
    """
    from llm.run.plan import print_plan
    from llm.run.session import TooFewItems
    from llm.run.setup import check_batches, checked

    world = World.join(dict(os.environ))
    base, root = base_of(source, words)
    root = world.share(root)
    answer = _answers(source, names, words)
    if answer is not None:
        words = [*words, f"data.answer={answer}"]
        base = replace(base, data=replace(base.data, answer=answer))
    prompts = _prompts(base)
    budget = budget_of(base, base.data.prompts_per_iteration or len(prompts.folds[0]))
    entries: list[Entry] = []
    skipped: dict[str, str] = {}
    for name in names:
        try:
            config = load_config(source, [f"recipe={name}", *words])
            rule, fit, _ = checked(config)
            check_batches(config, rule, fit, prompts)
            within = iterations_within(config, rule, base, budget, prompts)
            place = {"output_dir": str(root / name), "fresh": False}
            config = replace(config, **place, iterations=within, budget=budget)
            print_plan(config, Console(file=io.StringIO()))  # all that shows without the weights
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

    Raises InputError for what the recipes differ in, and for a directory that holds a run.
    """
    given = dict(split_override(word) for word in words)
    for key in given:
        if key in OF_THE_RECIPE:
            raise InputError(f"{key}: this is what recipes differ in; give --recipes instead")
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
    """The field with answers, where a recipe learns from them: all recipes then read those rows.

    Embedded data has them in a file of their own, with other prompts in another order.
    """
    from llm.run.setup import checked

    for name in names:
        try:
            config = load_config(source, [f"recipe={name}", *words])
            checked(config)
        except InputError:  # said when it is this recipe's turn
            continue
        if config.data.answer is not None:
            return config.data.answer
    return None


def _prompts(config: TrainConfig) -> PromptSet:
    from llm.data.examples import read_examples
    from llm.embedded import resolve
    from llm.run.setup import encoded, shape_of

    known = resolve(config)
    return encoded(known, shape_of(known), read_examples(known.data))


def against_each_other(
    root: Path, entries: Sequence[Entry], prompts: PromptSet, world: World
) -> Pairwise | None:
    """The final policies and their start: exact where the game is enumerated, else by the responses
    that the runs were evaluated on, judged here and stored in output_dir/pairwise.

    None without a judge.
    """
    from llm.embedded import game
    from llm.evaluation.win_rates import evaluated, exact, sampled
    from llm.run.session import JUDGING_KNOBS
    from llm.run.setup import evaluation_prompts, load_judge, out_of_memory
    from llm.storage.chunks import Work

    first = entries[0]
    if first.config.judge.kind == "none":
        return None
    if (first.config.judge.kind, first.config.judge.path) == ("embedded", "game"):
        each = [_start_and_end(entry, world) for entry in entries]
        return exact(game.preference(), [*(end for _, end in each), each[0][0]])
    asked = evaluation_prompts(prompts)
    played = [evaluated(entry.run, entry.iterations, asked) for entry in entries]
    at_reference = first.config.model.adapter is None
    played.append(evaluated(first.run, None if at_reference else 0, asked))
    with continued_later(RunDirectory(root)), out_of_memory("judging", JUDGING_KNOBS):
        judge, device = load_judge(first.config)
        assert judge is not None
        work = Work(first.config.chunk_size, world)
        return sampled(work, root / "pairwise", judge.to(device), played)


def _start_and_end(entry: Entry, world: World) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of all responses of the embedded game."""
    from llm.evaluation.exact import EnumeratedGame
    from llm.run.setup import prepare

    parts = prepare(entry.config, world)
    assert isinstance(parts.beside, EnumeratedGame)
    parts.policy.load_adapter(entry.run.path / "final")
    return parts.beside.start, parts.beside.log_probs(parts.policy)


# ------------------------------------------------------------------ command line


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code: 0, 1 for a run that stopped, 2 for bad input."""
    try:
        arguments = _parser().parse_intermixed_args(argv)
        be_quiet()
        return _command(arguments)
    except InputError as error:
        return fail(error, 2)
    except Interrupted as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail(Interrupted("interrupted; the same command continues"), 1)


def _command(arguments: argparse.Namespace) -> int:
    """Standard output carries the result, standard error the runs on the way."""
    from llm.evaluation import comparison_report as side_by_side
    from solvers import plots

    source, words = arguments.config, list(arguments.overrides)
    if source is None:
        source = DEFAULT_CONFIG
        words.insert(0, f"iterations={DEFAULT_ITERATIONS}")
    if arguments.json not in (None, "-"):
        outputs.check_target(Path(arguments.json))
    names = _names(arguments.recipes)
    lenient = arguments.recipes in (None, "all")
    found = compare(source, names, words, _console(sys.stderr), if_it_fits=lenient)
    world = World.join(dict(os.environ))
    if world.is_main:
        record, picture = found.record(), found.root / "comparison.png"
        outputs.write_json(record, str(found.root / "comparison.json"))
        if arguments.json is not None:
            outputs.write_json(record, arguments.json)
        plots.save(side_by_side.picture(record), picture)
        aside = arguments.json == "-"
        console = _console(sys.stderr if aside else sys.stdout)
        side_by_side.show(record, console)
        print(picture, file=console.file, flush=True)
    world.leave()
    return 0


def _names(words: str | None) -> list[str]:
    """The recipes of `--recipes`. Raises InputError for unknown ones."""
    if words is None or words == "all":
        return list(DEFAULT_RECIPES if words is None else recipes())
    names = list(dict.fromkeys(words.split(",")))
    for name in names:
        with_recipe({}, name)
    return names


def _console(stream: TextIO) -> Console:
    width = None if stream.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m llm.compare",
        description="Train several recipes from the same start on the same budget, and put them "
        f"side by side. Without arguments: {', '.join(DEFAULT_RECIPES)} on {DEFAULT_CONFIG}, "
        f"{DEFAULT_ITERATIONS} iterations.",
        epilog=f"recipes:\n{describe_recipes()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    known = ", ".join(shipped_configs())
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        help=f"the base configuration: a YAML file, or one of {known} (default: {DEFAULT_CONFIG})",
    )
    parser.add_argument(
        "--recipes",
        metavar="all|A,B,...",
        help="recipes by name, or all: those that do not fit are left out with the reason "
        "(default: those named above, without what does not fit)",
    )
    parser.add_argument(
        "--json",
        metavar="FILE|-",
        help="write what comparison.json holds there too; with - standard output carries it alone",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="fields of the base configuration to change (python -m llm.train --help lists them); "
        "budget.tokens and budget.comparisons are what each recipe may use",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
