"""Algorithm 1 of RSPO on a language model: `python -m llm.train`.

For t = 0, …, T − 1: sample K responses per prompt from π_t, judge all pairs, fit π_θ to the step of
the rule, π_{t+1} = π_θ. The rule and the fit are those of `solvers`, the same objects that play a
matrix; here they see the sampled game.

Differs from the paper in that π_t and μ are no copies of the model: log π_t is recorded when the
responses are sampled, and μ is the model without its adapter.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console

from games.errors import InputError
from llm.config.help import describe
from llm.config.loading import load_config, shipped_configs, split_override
from llm.config.schema import TrainConfig
from llm.storage.chunks import World
from llm.storage.directory import RunDirectory, find_run

logger = logging.getLogger("llm.train")  # as `python -m` this is __main__

DEFAULT = {"game": "embedded-game", "text": "embedded-text"}  # what runs without --config
EITHER_WAY = ("iterations", "output_dir", "seed")  # what may be given then


class Interrupted(RuntimeError):
    """A run that stopped in the middle and can be continued by the same command."""


def train(config: TrainConfig, console: Console | None = None) -> RunDirectory:
    """The run of a configuration: started, continued, or, where it is finished, shown.

    Raises InputError before anything is written, Interrupted afterwards.
    """
    from llm.evaluation.report import Report, table

    world = World.join(dict(os.environ))
    run = world.share(find_run(config) if world.is_main else None)
    report = Report(console or Console(), config.iterations, quiet=not world.is_main)
    if run.finished:
        for line in (f"{run.path}: finished", *table(run.metrics())):
            report.say(line)
        return run

    # torch and transformers come in here: --help and bad configurations answer without them.
    from llm.run.session import Session
    from llm.run.setup import prepare
    from llm.storage.provenance import provenance

    parts = prepare(config, world)
    started = run.started(config, provenance()) if world.is_main else nullcontext()
    with started, _logged(run, world), continued_later(run), report.progress:
        session = Session(config, parts, run, world, report)
        for t in session.open():
            session.measure(t)
            responses = session.respond(t)  # y_1, …, y_K ∼ π_t
            responses, preference = session.judge(t, responses)  # P(y_i ≻ y_j)
            plays = session.plays(t, responses, preference)
            update = parts.rule(plays, t)  # G, B, R and η (Eq. 6)
            items = parts.fit.items(plays, update)
            session.fit(t, responses, update, items)  # π_{t+1} = π_θ
        session.measure(run.trained())
        session.finish()
    return run


@contextmanager
def continued_later(run: RunDirectory) -> Iterator[None]:
    """Whatever stops a run becomes one line, and the run can be continued."""
    from llm.judges.preferences import JudgeError
    from llm.run.session import TooFewItems

    try:
        yield
    except TooFewItems as error:
        raise Interrupted(f"{error}; {run.path} keeps what is done") from error
    except (InputError, JudgeError, FloatingPointError) as error:
        raise _stopped(run, str(error)) from error
    except KeyboardInterrupt as error:
        raise _stopped(run, "interrupted") from error
    except Exception as error:
        # safetensors and torch have errors of their own for a full disk.
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error):
            raise _stopped(run, "the disk is full: make room") from error
        raise


def _stopped(run: RunDirectory, why: str) -> Interrupted:
    return Interrupted(f"{why}; the same command continues the run in {run.path}")


@contextmanager
def _logged(run: RunDirectory, world: World) -> Iterator[None]:
    """What this package logs goes to run.log."""
    if not world.is_main:
        yield
        return
    handler = logging.FileHandler(run.path / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("llm")
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        logger.info("stopped: %s", error, exc_info=True)  # for run.log; people get a line
        raise
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()


# ------------------------------------------------------------------ command line


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code: 0, 1 for a run that stopped, 2 for bad input."""
    arguments = _parser().parse_intermixed_args(argv)
    be_quiet()
    try:
        configs = _configs(arguments.config, arguments.overrides)
        for config in configs:
            if arguments.dry_run:
                from llm.run.plan import print_plan

                print_plan(config, Console())
            else:
                train(config)
    except InputError as error:
        return fail(error, 2)
    except Interrupted as error:
        return fail(error, 1)
    World.join(dict(os.environ)).leave()
    return 0


def fail(error: Exception, code: int) -> int:
    """Says what went wrong, once for all processes; the exit code."""
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {error}", file=sys.stderr)
    return code


def _configs(source: str | None, overrides: Sequence[str]) -> list[TrainConfig]:
    if source is not None:
        return [load_config(source, overrides)]
    given = dict(split_override(word) for word in overrides)
    for key in given:
        if key not in EITHER_WAY:
            raise InputError(
                f"{key}: without --config only {', '.join(EITHER_WAY)} can be given; add --config "
                f"and one of {', '.join(shipped_configs())}, or a file"
            )
    root = given.pop("output_dir", None)
    shared = [f"{key}={value}" for key, value in given.items()]
    return [
        load_config(name, shared + ([f"output_dir={Path(root) / part}"] if root else []))
        for part, name in DEFAULT.items()
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llm.train",
        description="Self-play on a language model: sample, judge, fit, repeat. Without arguments: "
        "the two embedded runs.",
        epilog=f"fields:\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(shipped_configs())
    parser.add_argument("--config", metavar="NAME|FILE", help=f"a YAML file, or one of {known}")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything that can be, and print the plan"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields to change")
    return parser


def be_quiet() -> None:
    """The libraries' own progress bars and advice stay off the console; our warnings go there."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("llm").addHandler(handler)


class _Module(types.ModuleType):
    """This module is its function as well: `from llm import train` gives the one or the other,
    by what was imported before.
    """

    def __call__(self, config: TrainConfig, console: Console | None = None) -> RunDirectory:
        return train(config, console)


sys.modules[__name__].__class__ = _Module

if __name__ == "__main__":
    sys.exit(main())
