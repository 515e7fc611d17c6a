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
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console

from games.errors import InputError
from llm.config.loading import shipped_configs
from llm.config.recipes import describe_recipes, recipes, with_recipe
from llm.run.lifecycle import Interrupted, fail, quiet_libraries
from llm.storage.chunks import World
from llm.train import run_training
from solvers import outputs
from solvers.__main__ import Parser

DEFAULT_CONFIG = "embedded-game"
DEFAULT_ITERATIONS = 6  # of DEFAULT_CONFIG: two minutes or so for these recipes
DEFAULT_RECIPES = (
    "sppo", "rspo", "inpo", "nash_md", "optimistic", "mnpo", "moving_dpo", "spin"
)  # fmt: skip
PLAIN_WIDTH = 180  # of tables that go to a file or a pipe


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code: 0, 1 for a run that stopped, 2 for bad input."""
    try:
        arguments = _parser().parse_intermixed_args(argv)
        quiet_libraries()
        return _command(arguments)
    except InputError as error:
        return fail(error, 2)
    except Interrupted as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail(Interrupted("interrupted; the same command continues"), 1)


def _command(arguments: argparse.Namespace) -> int:
    """Standard output carries the result, standard error the runs on the way."""
    from llm.evaluation import comparison_report
    from llm.run.comparison import compare
    from solvers import plots

    source, words = arguments.config, list(arguments.overrides)
    if source is None:
        source = DEFAULT_CONFIG
        words.insert(0, f"iterations={DEFAULT_ITERATIONS}")
    if arguments.json not in (None, "-"):
        outputs.check_target(Path(arguments.json))
    names = _names(arguments.recipes)
    lenient = arguments.recipes in (None, "all")
    found = compare(run_training, source, names, words, _console(sys.stderr), if_it_fits=lenient)
    world = World.join(dict(os.environ))
    if world.is_main:
        record, picture = found.record(), found.root / "comparison.png"
        outputs.write_json(record, str(found.root / "comparison.json"))
        if arguments.json is not None:
            outputs.write_json(record, arguments.json)
        plots.save(comparison_report.picture(record), picture)
        aside = arguments.json == "-"
        console = _console(sys.stderr if aside else sys.stdout)
        comparison_report.show(record, console)
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
