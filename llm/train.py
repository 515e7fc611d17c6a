"""Algorithm 1 of RSPO on a language model: `python -m llm.train`.

For t = 0, …, T − 1: sample K responses per prompt from π_t, judge all pairs, fit π_θ to the step of
the rule, π_{t+1} = π_θ. Rule and fit are objects of `solvers`, the same that play a matrix; here
they are given the sampled game.

Differs from the paper in that π_t and μ are not copies of the model: log π_t is recorded when the
responses are sampled, and μ is the model without its adapter.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from games.errors import InputError
from llm.config.help import describe
from llm.config.loading import REQUIRED, load_config, shipped_configs, split_override
from llm.config.schema import TrainConfig
from llm.config.section import unsavable
from llm.run.hub import check_hub_names
from llm.run.lifecycle import exit_code, prepare_console, started
from llm.storage.chunks import World
from llm.storage.directory import RunDirectory, find_run
from solvers.console import Parser

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_RUNS = {"game": "embedded-game", "text": "embedded-text"}  # without --config
DEFAULT_KEYS = ("iterations", "output_dir", "seed")  # overrides that apply to both of them


def run_training(config: TrainConfig, console: Console | None = None) -> RunDirectory:
    """Starts the run of a configuration, continues it, or shows it where it is finished.

    Raises InputError before anything is written, Interrupted afterwards.
    """
    from rich.console import Console

    from llm.evaluation.metrics import load_metrics
    from llm.evaluation.report import Report, table

    world = World.join(dict(os.environ))
    run = world.share(find_run(config) if world.is_main else None)
    metrics = load_metrics(config.evaluation.metrics)
    report = Report(console or Console(), config.iterations, metrics, quiet=not world.is_main)
    if run.finished_for(config.iterations):
        for line in (f"{run.path}: finished", *table(run.metrics(), metrics)):
            report.say(line)
        return run

    check_hub_names(config)
    # torch and transformers are imported here: help and bad configurations do not need them.
    from llm.run.session import Session
    from llm.run.setup import prepare
    from llm.run.stored_data import check_stored_prompts, store_first_prompt
    from llm.run.tracking import tracked
    from llm.sampling.engine import closing

    parts = prepare(config, world)
    source, rule, fit = parts.source, parts.rule, parts.fit
    check_stored_prompts(run, config, source, parts.prompts)
    for name in unsavable(config):
        report.say(f"{name}: an object without an import path, so that this run cannot be resumed")
    with (
        closing(parts.engine),
        started(run, config, world, report),
        tracked(config, run, world) as tracking,
    ):
        if world.is_main:
            store_first_prompt(run, parts.prompts)
        session = Session(config, parts, run, world, report, tracking)
        stages = session.stages
        for t in session.iterations():
            session.measure(t)
            responses = source.responses(t, stages)  # y_1, …, y_K ∼ π_t
            preference = source.preferences(t, responses, stages)  # P(y_i ≻ y_j)
            plays = session.plays(t, responses, preference)  # the sampled game
            update = rule(plays, t)  # G, B, R and η (Eq. 6)
            items = fit.items(plays, update)  # what the loss compares log π_θ with
            session.fit(t, responses, plays, update, items)  # π_{t+1} = π_θ
        session.measure(run.trained())
        session.finish()
    return run


train = run_training


# --- command line ---------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns an exit code, see `exit_code`."""
    prepare_console()
    return exit_code(lambda: _command(_parser().parse_intermixed_args(argv)))


def _command(arguments: argparse.Namespace) -> int:
    configs = _configs(arguments.config, arguments.overrides)
    if arguments.json is not None and not (arguments.dry_run and len(configs) == 1):
        raise InputError(
            "--json: goes with --dry-run and one run, as --config names it; add both, or leave it "
            "out"
        )
    for config in configs:
        if arguments.dry_run:
            _plan(config, arguments.json)
        else:
            run_training(config)
    World.join(dict(os.environ)).leave()
    return 0


def _plan(config: TrainConfig, target: str | None) -> None:
    """Prints the plan; writes it as JSON too, to a file, or to standard output alone for `-`."""
    import json

    from rich.console import Console

    check_hub_names(config)

    from llm.run.plan import print_plan
    from llm.storage.files import write_text

    plan = print_plan(config, Console(stderr=target == "-"))
    text = json.dumps(_finite(plan), indent=1, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
    elif target is not None:
        try:
            write_text(Path(target), text)
        except OSError as error:
            raise InputError(f"--json {target}: cannot be written ({error.strerror})") from error


def _finite(value: Any) -> Any:
    """The value with infinity and NaN, which JSON does not have, as text that a field takes."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _configs(source: str | None, overrides: Sequence[str]) -> list[TrainConfig]:
    if source is not None:
        return [load_config(source, overrides)]
    given = dict(split_override(word) for word in overrides)
    missing = [key for key in REQUIRED if given.get(key) is None]
    if not missing:
        return [load_config(None, overrides)]
    if len(missing) < len(REQUIRED):
        raise InputError(
            f"{', '.join(missing)}: missing; without --config a run needs {', '.join(REQUIRED)}: "
            "give them, or add --config"
        )
    for key in given:
        if key not in DEFAULT_KEYS:
            raise InputError(
                f"{key}: without --config only {', '.join(DEFAULT_KEYS)} can be given; add "
                f"--config and one of {', '.join(shipped_configs())}, or a file; or give "
                f"{', '.join(REQUIRED)}"
            )
    root = given.pop("output_dir", None)
    shared = [f"{key}={value}" for key, value in given.items()]
    return [
        load_config(name, shared + ([f"output_dir={Path(root) / part}"] if root else []))
        for part, name in DEFAULT_RUNS.items()
    ]


def _parser() -> Parser:
    parser = Parser(
        prog="python -m llm.train",
        description="Self-play on a language model: sample, judge, fit, repeat. Without arguments: "
        "the two embedded runs. --config may be left out if model.path, data.path and judge.kind "
        "are given.",
        epilog=f"fields:\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(shipped_configs())
    parser.add_argument("--config", metavar="NAME|FILE", help=f"a YAML file, or one of {known}")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything that can be, and print the plan"
    )
    parser.add_argument(
        "--json", metavar="FILE|-", help="with --dry-run: write the plan and the examples as JSON"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields to change")
    return parser


if __name__ == "__main__":
    sys.exit(main())
