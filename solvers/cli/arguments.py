"""Games, references and output files named by arguments of the commands."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
from rich.console import Console

from games import InputError, MatrixGame, PreferenceGame, SkewGame, load, load_reference, zoo

from .. import outputs
from ..compare import Reference
from ..console import make_console

Game = PreferenceGame | SkewGame | MatrixGame


def named_game(args: Namespace) -> Game:
    """The game of the argument GAME: a name of the zoo, or else a file."""
    name, path = args.game, Path(args.game)
    known = name.partition(":")[0] in zoo.NAMES
    if not known and (path.suffix or len(path.parts) > 1 or os.path.exists(path)):
        return load(path, args.kind or "preference", args.prior)
    game = zoo.get(name, args.seed)
    if args.kind not in (None, game.kind) or args.prior is not None:
        raise InputError(
            f"{name} is a game of kind {game.kind} already: leave out --as and --prior"
        )
    return game


def named_reference(args: Namespace, game: Game) -> Reference:
    """log μ, a pair of them in a zero-sum game; None for uniform."""
    if args.reference == "uniform":
        return None
    if not isinstance(game, MatrixGame):
        return np.log(load_reference(args.reference, game.n))
    files = args.reference.split(",")
    if len(files) != 2:
        raise InputError(
            f"--reference {args.reference}: a zero-sum game needs two files, ROWS,COLUMNS"
        )
    first, second = (
        np.log(load_reference(file, n)) for file, n in zip(files, (game.m, game.n), strict=True)
    )
    return first, second


def check_outputs(args: Namespace) -> None:
    """Raises InputError, before anything is computed, for a file that cannot be written."""
    if args.json not in (None, "-"):
        outputs.check_target(Path(args.json))
    if getattr(args, "plot", None) is not None:
        outputs.check_picture(args.plot)


def report_console(args: Namespace) -> Console:
    """The console for tables: standard output, or standard error with --json -."""
    aside = getattr(args, "json", None) == "-"
    return make_console(sys.stderr if aside else sys.stdout)
