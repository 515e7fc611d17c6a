"""Comparing recipes on one model: `python -m llm.compare`.

Every recipe of llm/config/recipes.yaml replaces rule and fit of one base configuration. All
recipes train from the same start, on the same prompts, with the same judge and seed, each in a run
directory of its own, output_dir/RECIPE; the same command resumes an interrupted comparison. The
result is a table, the win rates of the final policies against each other, comparison.json and
comparison.png.

The recipes have the same budget: at most `budget.tokens` generated training tokens and at most
`budget.comparisons` judged pairs of responses (both orders of a pair are one comparison). Tokens
that train a GFlowNet are not counted. By default the budget is the most that the base
configuration can use: iterations × prompts × K responses of sample.max_new_tokens each, and all
K(K − 1)/2 pairs of each prompt. A recipe then trains for as many whole iterations as are
guaranteed to fit: a recipe with K = 8 gets 5/8 of the iterations of one with K = 5, because of its
tokens, although its tournament asks for 11 pairs instead of 28. A recipe without comparisons is
limited by tokens only, one that generates nothing takes the base's `iterations`. If budget.tokens
is given, a run continues while another iteration is expected to fit, so that shorter responses
allow more iterations. Optimizer steps and seconds are not equalized; the table shows the seconds,
the JSON both.

comparison.json, which --json writes as well:
    config, seed, budget {tokens, comparisons}, versions
    recipes   a list, in the order of the table, of {recipe, rule, fit, target (the game whose
              equilibrium the rule approaches), claims (the iterate that is claimed to converge to
              it), reaches (whether the fit is consistent on samples: false for a selection of them
              and for labels that contain only the winner), eta, samples_per_prompt, iterations,
              win_rate and win_rate_error (over the start), kl_to_reference, entropy, length,
              self_bleu, kl_to_equilibrium (of that game), duality_gap (without regularization),
              loss, tokens, comparisons, optimizer_steps, seconds (with evaluation), run, trace};
              trace is a list with one entry per iterate, of {iteration, all metrics of
              metrics.jsonl (win_rate there is over μ, seconds are of that iteration),
              standard_errors ({metric: error} over the evaluation prompts, where estimated)}.
              The last value of every other metric stands in the entry of the recipe, too.
              Unknown values are null
    skipped   a list of {recipe, reason}
    pairwise  {policies, win_rate, standard_error, exact}: win_rate[a][b] is the win rate of
              policies[a] over policies[b]; null without a judge. The last policy is the start
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console

from llm.config.loading import load_config, shipped_configs
from llm.config.recipes import describe_recipes, recipes, with_recipe
from llm.run.hub import check_hub_names
from llm.run.lifecycle import exit_code, prepare_console
from llm.storage.chunks import World
from llm.train import run_training
from solvers import outputs
from solvers.console import Parser

DEFAULT_CONFIG = "embedded-game"
DEFAULT_ITERATIONS = 6  # of DEFAULT_CONFIG: about two minutes for these recipes
DEFAULT_RECIPES = (
    "sppo", "rspo", "inpo", "nash_md", "optimistic", "mnpo", "moving_dpo", "spin"
)  # fmt: skip
PLAIN_WIDTH = 180  # of tables that go to a file or a pipe


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns an exit code, see `exit_code`."""
    prepare_console()
    return exit_code(lambda: _command(_parser().parse_intermixed_args(argv)))


def _command(arguments: argparse.Namespace) -> int:
    """Results go to standard output, the progress of the runs to standard error."""
    source, words = arguments.config, list(arguments.overrides)
    if source is None:
        source = DEFAULT_CONFIG
        words.insert(0, f"iterations={DEFAULT_ITERATIONS}")
    names = _names(arguments.recipes)
    check_hub_names(load_config(source, words))

    from llm.evaluation import comparison_report
    from llm.run.comparison import compare
    from solvers import plots

    if arguments.json not in (None, "-"):
        outputs.check_target(Path(arguments.json))
    lenient = arguments.recipes in (None, "all")
    found = compare(run_training, source, names, words, _console(sys.stderr), if_it_fits=lenient)
    world = World.join(dict(os.environ))
    if world.is_main:
        record, picture = found.record(), found.root / "comparison.png"
        outputs.write_json(record, str(found.root / "comparison.json"))
        if arguments.json is not None:
            outputs.write_json(record, arguments.json)
        plots.save(comparison_report.picture(record, found.metrics), picture)
        aside = arguments.json == "-"
        console = _console(sys.stderr if aside else sys.stdout)
        comparison_report.show(record, console, found.metrics)
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
        description="Train several recipes from the same start on the same budget, and compare "
        f"them. Without arguments: {', '.join(DEFAULT_RECIPES)} on {DEFAULT_CONFIG}, "
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
        help="recipes by name, or all; recipes that do not fit are left out with the reason "
        "(default: those named above that fit)",
    )
    parser.add_argument(
        "--json",
        metavar="FILE|-",
        help="also write comparison.json there; with -, standard output carries it alone",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="fields of the base configuration to change (python -m llm.train --help lists them); "
        "budget.tokens and budget.comparisons apply to each recipe",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
